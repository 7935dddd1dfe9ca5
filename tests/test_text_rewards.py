"""Rewards for text: rules against what one counts by hand, published networks against their own formula on tiny ones, the readers against the
law they claim and the figures they come with."""

import importlib
import json
import math
import os
import random
import string
from collections import Counter
from pathlib import Path

import pytest
import torch

import viot
from viot import hub
from viot.rewards import (
    Acceptable,
    Classifier,
    Count,
    Fluency,
    Length,
    Lexicon,
    Perplexity,
    Regex,
    Reviews,
    ReviewsJudge,
    as_reward,
    language,
    readers,
)
from viot.rewards.readers import NaiveBayes, NGram, nets
from viot.rewards.readers.ngram import _look_up
from viot.rewards.text import words

DATA = Path(os.environ.get("VIOT_DATA", Path(__file__).parents[2] / "shared" / "data"))
TEXTS = ["a warm, funny film.", "dull and lifeless; a mess", "", "anna", "the the the", "xq7 ## zzk"]


# -- by rule --------------------------------------------------------------------------------------------------------------------------


def test_words():
    assert words("Don't stop... it’s “fun”, 10/10!") == ["don't", "stop", "...", "it's", "“", "fun", "”", ",", "10", "/", "10", "!"]


@pytest.mark.parametrize(
    ("spelling", "texts", "want"),
    [
        ("count:a", ["anna", "Anna", "", "bob"], [2, 1, 0, 0]),
        ("count:aa", ["aaaaa", "aabaa"], [2, 2]),
        ("count:: ", ["a: b: ", ":"], [2, 0]),
        ("regex:^mar", ["maria", "omar", "mark mark"], [1, 0, 1]),
        ("regex:(?i)A$", ["anna", "BA", "ab"], [1, 1, 0]),
        ("length:6", ["sophia", "", "al", "christine"], [0, -6, -4, -3]),
        ("length:0", ["", "ab"], [0, -2]),
        ("length:3 words", ["one two three", "well, don't go!", "a", ""], [0, 0, -2, -3]),
        ("length:2 characters", ["abc"], [-1]),
    ],
)
def test_rules_count_what_they_say(spelling, texts, want):
    reward = as_reward(spelling)
    got = reward(texts)
    assert got.dtype == torch.float64
    assert got.tolist() == want
    assert reward.name == spelling.removesuffix(" characters")
    assert reward.differentiable is False
    viot.testing.check_reward(reward, texts + TEXTS)


def test_a_lexicon_sums_its_words(tmp_path):
    lexicon = Lexicon({"superb": 1.5, "Dull": -1})
    texts = ["Superb, superb!", "dull but superb", "superbly dulled", ""]
    assert lexicon(texts).tolist() == [3.0, 0.5, 0.0, 0.0]
    file = tmp_path / "words.txt"
    file.write_text("superb\t1.5\n\n  Dull\t-1\r\nfine\n")
    read = as_reward(f"lexicon:{file}")
    assert read.weights == {"superb": 1.5, "dull": -1.0, "fine": 1.0}
    assert (read.name, read(["a fine, dull day"]).tolist()) == (f"lexicon:{file}", [0.0])
    assert read.fingerprint() != lexicon.fingerprint() == Lexicon({"dull": -1, "superb": 1.5}).fingerprint()
    viot.testing.check_reward(lexicon, texts)


def test_rules_refuse_what_makes_no_sense(tmp_path):
    for spelling, message in (
        ("regex:^(mar", r"'\^\(mar' is not a regular expression: missing \).* at character 2"),
        ("regex:a**", "multiple repeat at character 3"),
        ("length:six", "whole number ≥ 0, not 'six'"),
        ("length:-3", "whole number ≥ 0, not '-3'"),
        ("length:6 pages", "characters or words, not 'pages'"),
        ("count:", "not spelled right; write count:a"),
        ("regex", r"not spelled right; write regex:\^mar"),
        ("length", "not spelled right; write length:6"),
        ("lexicon", "not spelled right; write lexicon:FILE"),
    ):
        with pytest.raises(ValueError, match=message):
            as_reward(spelling)
    for make, message in (
        (lambda: Count(""), "count needs the text"),
        (lambda: Regex(""), "regex needs a pattern"),
        (lambda: Length(-1), "whole number"),
        (lambda: Length(2.5), "whole number"),
        (lambda: Lexicon({}), "at least one word"),
        (lambda: Lexicon({"two words": 1}), "single words, not 'two words'"),
        (lambda: Lexicon({"a": math.inf}), "finite number"),
        (lambda: Lexicon({"a": 1, "A": 2}), "twice"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    file = tmp_path / "words.txt"
    with pytest.raises(FileNotFoundError, match=r"there is no file .*words\.txt"):
        as_reward(f"lexicon:{file}")
    for text, message in (
        ("\n \n", "holds no words"),
        ("good\ntwo words\n", "line 2 of .* is 'two words', not a word"),
        ("good\tmuch", "line 1 of .* a finite weight"),
        ("good\tnan", "line 1"),
        ("good\n\nGood\t2", "line 3 of .*'good' is there a second time"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            as_reward(f"lexicon:{file}")
    file.write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        as_reward(f"lexicon:{file}")


@pytest.mark.parametrize("spelling", ["count:a", "regex:a", "length:3", "reviews", "reviews-judge", "acceptable", "ngram:names"])
def test_what_is_no_text_is_answered(spelling):
    reward = as_reward(spelling)
    for samples, message in (
        (torch.zeros(2, 3, 8, 8), r"tensors of shape \(2, 3, 8, 8\), which this model makes"),
        ("one text", r"str; write \[text\]"),
        (["a", 7, "b"], r"int \(sample 1 of 3\)"),
        (None, "NoneType"),
    ):
        with pytest.raises(ValueError, match=f"scores text, a list of n strings, not {message}"):
            reward(samples)
    assert reward([]).shape == (0,)


@pytest.mark.parametrize("spelling", ["brightness", "jpeg", "digit:7"])
def test_rewards_for_pictures_say_that_texts_are_none(spelling):
    with pytest.raises(ValueError, match=f"{spelling}.* reads pictures, and this model makes text"):
        viot.sample("names", spelling, "base", particles=2, steps=2, progress=False)


# -- published networks, tiny ---------------------------------------------------------------------------------------------------------

VOCABULARY = ["<s>", "<pad>", "</s>", "<unk>", "a", "film", "warm", "funny", "dull", "and", "mess", "the", ".", ","]


def tokenizer(bos=True, pad=True):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if bos:
        made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    special = {"bos_token": "<s>"} if bos else {}
    special |= {"pad_token": "<pad>"} if pad else {}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>", **special)


def shaken(network):
    """Weights of a size that makes everything in the network matter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3 + (1.0 if p.ndim == 1 else 0.0))
    return network.eval()


def classifier(**more):
    transformers = pytest.importorskip("transformers")
    config = transformers.RobertaConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=70, bos_token_id=0, pad_token_id=1, eos_token_id=2, **{"num_labels": 2} | more,
    )  # fmt: skip
    with torch.random.fork_rng():
        return shaken(transformers.RobertaForSequenceClassification(config))


def lm(kind="GPT2LMHeadModel", **more):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=len(VOCABULARY), n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=2, **more
    )
    with torch.random.fork_rng():
        return shaken(getattr(transformers, kind)(config))


READ = ["a warm and funny film .", "dull", "the mess , the mess and a film", "", "a warm and funny film .", "a xyz"]


def test_a_classifier_is_its_log_softmax():
    """Against the network on each text alone, without padding; a mask forgotten would show."""
    network, reader = classifier(num_labels=3), tokenizer()
    reward = Classifier("tiny", 1, model=network, tokenizer=reader)
    got = reward(READ)
    assert got.dtype == torch.float64
    with torch.no_grad():
        alone = [network(input_ids=torch.tensor([reader(text)["input_ids"]])).logits.double().log_softmax(-1)[0, 1] for text in READ]
        rows = reader(READ[:2], padding=True, return_tensors="pt")["input_ids"]
        unmasked = network(input_ids=rows, attention_mask=torch.ones_like(rows)).logits.log_softmax(-1)[1, 1]
    assert torch.allclose(got, torch.stack(alone), atol=1e-6)
    assert abs(unmasked - alone[1]) > 1e-3
    assert got[0] == got[4]
    assert got.std() > 1e-2
    viot.testing.check_reward(reward, READ)
    other = (
        Classifier("tiny", 0, model=network, tokenizer=reader)(READ).exp()
        + Classifier("tiny", 2, model=network, tokenizer=reader)(READ).exp()
    )
    assert torch.allclose(got.exp() + other, torch.ones(6, dtype=torch.float64))


def test_only_the_beginning_of_the_first_document_is_read():
    network, reader = classifier(), tokenizer()
    reward = Classifier("tiny", 0, model=network, tokenizer=reader)
    score = lambda text: reward([text]).item()
    assert (
        score("a warm film <|endoftext|> dull mess")
        == score("<|endoftext|> a warm film ")
        == score("a warm film")
        != score("a warm film dull mess")
    )
    # Two of five tokens are the beginning and the end.
    short = Classifier("tiny", 0, model=network, tokenizer=reader, tokens=5)
    assert short(["a warm and dull mess"]).item() == score("a warm and") != score("a warm and dull mess")
    likely = Perplexity("tiny", model=lm(), tokenizer=reader, tokens=3)
    assert likely(["a warm and dull mess"]) == likely(["a warm and"]) != likely(["a warm mess"])


def test_labels_by_name_and_index():
    reader, plain, named = tokenizer(), classifier(), classifier(id2label={0: "calm", 1: "ANGRY"}, label2id={"calm": 0, "ANGRY": 1})
    want = Classifier("tiny", 1, model=plain, tokenizer=reader)(READ)
    for label in ("1", "LABEL_1", "label_1"):
        assert torch.equal(Classifier("tiny", label, model=plain, tokenizer=reader)(READ), want)
    assert torch.equal(Classifier("tiny", "angry", model=named, tokenizer=reader)(READ), want)
    for label in ("furious", 2, "-1", -1):
        with pytest.raises(ValueError, match=rf"tiny has no label '?{label}'?; its labels are 0 calm, 1 ANGRY"):
            Classifier("tiny", label, model=named, tokenizer=reader)
    with pytest.raises(ValueError, match="single output"):
        Classifier("tiny", 0, model=classifier(num_labels=1), tokenizer=reader)
    with pytest.raises(ValueError, match="at least one token"):
        Classifier("tiny", 0, model=plain, tokenizer=reader, tokens=0)


def test_labels_that_do_not_exclude_each_other():
    network, reader = classifier(problem_type="multi_label_classification"), tokenizer()
    got = Classifier("tiny", 1, model=network, tokenizer=reader)(READ[:1])
    with torch.no_grad():
        logit = network(input_ids=torch.tensor([reader(READ[0])["input_ids"]])).logits[0, 1]
    assert got.item() == pytest.approx(math.log(1 / (1 + math.exp(-logit))), abs=1e-6)


def test_a_classifier_without_a_padding_token_reads_one_by_one():
    reader, network = tokenizer(pad=False), lm("GPT2ForSequenceClassification", num_labels=2)
    got = Classifier("tiny", 0, model=network, tokenizer=reader)(READ)
    with torch.no_grad():
        alone = [network(input_ids=torch.tensor([reader(text)["input_ids"]])).logits.log_softmax(-1)[0, 0] for text in READ]
    assert torch.allclose(got, torch.stack(alone).double(), atol=1e-6)


def test_perplexity_is_fk_steerings():
    """−ln 2^CE with CE from the network's own loss on each text alone, a first token before it; and the factor."""
    network, reader = lm(), tokenizer()
    reward = Perplexity("tiny", model=network, tokenizer=reader)
    got, plain = reward(READ), Perplexity("tiny", 1.0, model=network, tokenizer=reader)(READ)
    for text, score, nats in zip(READ, got.tolist(), plain.tolist(), strict=True):
        ids = torch.tensor([[0, *(reader(text, add_special_tokens=False)["input_ids"] or [2])]])
        with torch.no_grad():
            ce = network(input_ids=ids, labels=ids).loss.item()
        assert score == pytest.approx(-math.log(2**ce), abs=1e-5)
        assert nats == pytest.approx(-ce, abs=1e-5)
    assert got.isfinite().all(), "an empty text is one that ends at once"
    assert got.std() > 1e-2
    viot.testing.check_reward(reward, READ)
    # Without a token to begin with, the one to end with stands there, as in GPT-2.
    ended = Perplexity("tiny", 1.0, model=network, tokenizer=tokenizer(bos=False))(["dull"])
    with torch.no_grad():
        ids = torch.tensor([[2, VOCABULARY.index("dull")]])
        assert ended.item() == pytest.approx(-network(input_ids=ids, labels=ids).loss.item(), abs=1e-5)
    for factor in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="factor must be finite and > 0"):
            Perplexity("tiny", factor, model=network, tokenizer=reader)


def test_checkpoints_load_from_folders(tmp_path):
    """The whole way by name: config, safetensors and tokenizer on disk. And what is not there, or something else."""
    network, reader = classifier(), tokenizer()
    network.half().save_pretrained(tmp_path / "c")
    reader.save_pretrained(tmp_path / "c")
    reward = as_reward(f"classifier:{tmp_path / 'c'}:LABEL_1")
    assert reward.name == f"classifier:{tmp_path / 'c'}:LABEL_1"
    assert next(reward.network.parameters()).dtype == torch.float32, "kept in half precision, used in single"
    assert torch.allclose(reward(READ), Classifier("tiny", 1, model=network, tokenizer=reader)(READ), atol=1e-5)
    lm().save_pretrained(tmp_path / "l")
    reader.save_pretrained(tmp_path / "l")
    by_name = as_reward(f"perplexity:{tmp_path / 'l'}")
    assert torch.allclose(by_name(READ), Perplexity("tiny", model=lm(), tokenizer=reader)(READ), atol=1e-6)
    assert by_name.fingerprint() == "factor 0.693147 local 50 tokens float32"
    with pytest.raises((ValueError, OSError), match="does not hold the weights of this AutoModelForSequenceClassification: it lacks"):
        as_reward(f"classifier:{tmp_path / 'l'}:0")
    with pytest.raises(OSError, match="write classifier:FOLDER:LABEL with a folder"):
        as_reward(f"classifier:{tmp_path / 'nowhere'}:0")
    for bad in ("classifier:org/model", "classifier:org/model:"):
        with pytest.raises(ValueError, match="takes a checkpoint and a label"):
            as_reward(bad)


def test_presets_name_their_checkpoints_and_labels(monkeypatch):
    """The labels of FK steering's reward functions; what is asked of the hub, and that no revision is asked for unless one is given."""
    asked, network = [], classifier(num_labels=3)

    def pretrained(kind, source, instead, revision=None):
        asked.append((source, revision))
        return tokenizer() if kind == "AutoTokenizer" else network

    monkeypatch.setattr(hub, "pretrained", pretrained)
    for spelling, checkpoint, index in (
        ("toxicity", "SkolkovoInstitute/roberta_toxicity_classifier", 1),
        ("toxicity:low", "SkolkovoInstitute/roberta_toxicity_classifier", 0),
        ("cola", "textattack/roberta-base-CoLA", 1),
        ("sentiment", "cardiffnlp/twitter-roberta-base-sentiment", 2),
        ("sentiment:neutral", "cardiffnlp/twitter-roberta-base-sentiment", 1),
        ("sentiment:negative", "cardiffnlp/twitter-roberta-base-sentiment", 0),
        ("formality", "cointegrated/roberta-base-formality", 1),
    ):
        reward = as_reward(spelling)
        assert (reward.name, reward.index, asked[-2:]) == (spelling, index, [(checkpoint, None)] * 2)
    with pytest.raises(ValueError, match=r"unknown label of sentiment 'postive'\. Did you mean 'positive'"):
        as_reward("sentiment:postive")
    reward = Classifier("org/model", 0, revision="abc123")
    assert asked[-2:] == [("org/model", "abc123")] * 2
    assert reward.fingerprint() == "label 0 abc123 50 tokens float32"
    network.config._commit_hash = "0123abcd"
    assert "0123abcd" in Classifier("org/model", 0).fingerprint(), "what the hub answered with"
    assert set(language.PRESETS) <= set(viot.rewards.rewards)


def test_a_revision_reaches_the_loaders_and_remote_code_does_not(monkeypatch):
    transformers = pytest.importorskip("transformers")
    told = {}
    for kind, answer in (("AutoModelForSequenceClassification", (classifier(), {"missing_keys": []})), ("AutoTokenizer", tokenizer())):
        monkeypatch.setattr(
            getattr(transformers, kind), "from_pretrained", lambda source, kind=kind, answer=answer, **k: told.update({kind: k}) or answer
        )
    Classifier("org/model", 0, revision="v1")
    assert told == {
        "AutoModelForSequenceClassification": {"revision": "v1", "output_loading_info": True, "trust_remote_code": False},
        "AutoTokenizer": {"revision": "v1", "trust_remote_code": False},
    }


# -- n-gram models --------------------------------------------------------------------------------------------------------------------


def sums(model, histories):
    """Σ over what may come next of p, for each history."""
    tokens = torch.arange(model.size)
    return torch.stack([model.log_prob(torch.tensor([h]).expand(model.size, -1), tokens).exp().sum() for h in histories])


CORPUS = ["a b a c", "a b b", "c a b a", "d", "a b a", "b b e"]


@pytest.mark.parametrize(("order", "settings"), [(1, {}), (2, {}), (3, {}), (3, {"min_count": 2, "prune": 1}), (4, {"prune": 2})])
def test_an_ngram_model_sums_to_one(order, settings):
    """After any history: seen, unseen, of the beginning, pruned. Not if the mass for the lower orders were lost."""
    model = NGram.fit(CORPUS, order, "words", **settings)
    draw = random.Random(0)
    histories = [[draw.randrange(model.size + 1) for _ in range(order - 1)] for _ in range(40)] + [[model.size] * (order - 1)]
    assert torch.allclose(sums(model, histories), torch.ones(41, dtype=torch.float64), rtol=0, atol=1e-12)
    for table in model.tables:
        table["backoff"] = torch.zeros_like(table["backoff"])
    assert (sums(model, histories) - 1).abs().max() > 0.05


def kneser_ney(corpus, order, token, history, neighbours=True, prune=0):
    """p by the formula of Chen & Goodman, from counts made here; one discount per order."""
    start, rows = "<", [["<"] * (order - 1) + text.split() + [">"] for text in corpus]
    grams = {order: Counter(tuple(r[i : i + order]) for r in rows for i in range(len(r) - order + 1))}
    for k in range(order - 1, 0, -1):
        grams[k] = Counter()
        for gram, times in grams[k + 1].items():
            grams[k][gram[1:]] += times if gram[1] == start or not neighbours else 1
    vocabulary = {w for r in rows for w in r if w != start}
    p = 1 / (len(vocabulary) + 1)
    for k in range(1, order + 1):
        h = tuple(history[len(history) - k + 1 :]) if k > 1 else ()
        once, twice = (sum(times == n for times in grams[k].values()) for n in (1, 2))
        d = min(0.95, max(0.05, once / max(1, once + 2 * twice)))
        here = {gram[-1]: times for gram, times in grams[k].items() if gram[:-1] == h}
        kept = {w: times for w, times in here.items() if k < order or times > prune}
        if kept:
            gone = sum(here.values()) - sum(kept.values())
            p = (
                max(kept.get(token, 0) - d, 0) / sum(here.values())
                + (gone + sum(min(d, t) for t in kept.values())) / sum(here.values()) * p
            )
    return p


def test_an_ngram_model_is_kneser_ney():
    for prune in (1, 0):
        model = NGram.fit(CORPUS, 3, "words", prune=prune)
        for text in ("a b a c", "c c", "d a", ""):
            row = ["<", "<", *text.split(), ">"]
            want = -sum(math.log(kneser_ney(CORPUS, 3, row[i], row[i - 2 : i], prune=prune)) for i in range(2, len(row)))
            assert model.total([text]).item() == pytest.approx(want, rel=1e-12)
    assert model.nll(["a b a c", ""]).tolist() == pytest.approx((model.total(["a b a c", ""]) / torch.tensor([5, 1])).tolist())
    # Occurrences in place of left neighbours are another law.
    ours = model.log_prob(torch.tensor([[0, 1]]), torch.tensor([1])).exp().item()
    assert ours == pytest.approx(kneser_ney(CORPUS, 3, "b", ["a", "b"]))
    assert abs(ours - kneser_ney(CORPUS, 3, "b", ["a", "b"], neighbours=False)) > 1e-3


def test_unknown_words_share_what_rare_ones_had():
    model = NGram.fit(CORPUS, 2, "words", min_count=2)
    assert model.vocabulary == ["a", "b", "c"]
    assert model.rare == 2, "d and e"
    unknown = torch.tensor([model.end + 1])
    p = model.log_prob(torch.tensor([[model.size]]), unknown) + model.log_prob(unknown[:, None], torch.tensor([model.end]))
    assert model.total(["never"]).item() == pytest.approx(-p.item() + math.log(2))


def test_an_ngram_model_is_kept(tmp_path):
    model = NGram.fit(["a\nb", 'é"x', "ab"], 3, "characters", prune=1)
    model.save(tmp_path / "n.safetensors")
    read = NGram.load(tmp_path / "n.safetensors")
    texts = ["a\nb", "éa", "", "zz"]
    assert torch.equal(read.total(texts), model.total(texts))
    assert (read.vocabulary, read.order, read.unit) == (model.vocabulary, 3, "characters")
    assert Fluency(read).fingerprint() == model.fingerprint() != NGram.fit(["ab"], 3, "characters").fingerprint()
    with pytest.raises(ValueError, match="holds no n-gram model"):
        NGram.load(readers.FOLDER / "judge.safetensors")
    for bad, message in (
        (lambda: NGram.fit(["a"], 0), "order ≥ 1"),
        (lambda: NGram.fit(["a"], 2, "pages"), "unit of characters, words"),
        (lambda: NGram.fit([], 2), "needs texts"),
        (lambda: NGram.fit([" ".join(map(str, range(3000)))], 6), "too many for order 6"),
        (lambda: as_reward("ngram:nams"), "Did you mean 'names'"),
        (lambda: as_reward("ngram"), "write ngram:names"),
    ):
        with pytest.raises(ValueError, match=message):
            bad()
    assert _look_up(torch.tensor([2, 5]), torch.tensor([7, 8]), torch.tensor([5, 9, 2, 0]))[0].tolist() == [8, 0, 7, 0]


def test_the_embedded_ngram_models():
    names, reviews = readers.ngram("names"), readers.ngram("reviews")
    draw = random.Random(0)
    for model in (names, reviews):
        histories = [
            model.encode("the film is a")[: model.order - 1],
            [model.size] * (model.order - 1),
            [draw.randrange(model.size)] * (model.order - 1),
        ]
        assert torch.allclose(sums(model, histories), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-9)
    score = Fluency("names")
    assert (score(["maria", "jonathan", "elena"]) > score(["mraai", "jnaohtan", "lnaee"])).all()
    assert score(["maria"]).item() == pytest.approx(-names.total(["maria"]).item() / 6)
    film = ["the film is a funny and touching story.", "it's a bad movie."]
    spoilt = ["story the touching is. a and funny film", "movie bad a it's.", "xq7 zzk wwq fgh jkl."]
    assert Fluency("reviews")(film).min() > Fluency("reviews")(spoilt).max()


# -- readers --------------------------------------------------------------------------------------------------------------------------

PRAISE = ["a warm, funny and deeply moving film.", "an enjoyable and beautifully acted comedy.", "one of the best films of the year"]
BLAME = ["a dull, lifeless mess.", "it's a bad movie, boring and pointless.", "too long, too stupid and not funny"]
SPELLINGS = ("reviews:positive", "reviews:negative", "reviews-judge:positive", "acceptable", "ngram:names", "ngram:reviews")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_readers_keep_the_contract_of_a_reward(spelling):
    """Each text by itself, in any company: empty ones, broken ones and long ones."""
    long = " ".join(PRAISE * 3)
    reward = as_reward(spelling)
    texts = [*TEXTS, *PRAISE, long, "a b", "\x00é日本", "fun ##ny fi"]
    viot.testing.check_reward(reward, texts, tolerance=1e-6)
    assert (reward(texts) <= 0).all()
    assert (reward.name, reward.differentiable) == (spelling, False)


def test_sentiment_is_told():
    for reward in (Reviews, ReviewsJudge):
        positive, negative = reward("positive"), reward("negative")
        assert positive(PRAISE).exp().min() > 0.6
        assert positive(BLAME).exp().max() < 0.4
        assert torch.allclose(positive(PRAISE).exp() + negative(PRAISE).exp(), torch.ones(3, dtype=torch.float64), atol=1e-6)
        with pytest.raises(ValueError, match=r"unknown sentiment 'positve'\. Did you mean 'positive'"):
            reward("positve")
    assert torch.equal(as_reward("reviews")(PRAISE), Reviews("positive")(PRAISE))
    half = [text[: len(text) // 2 + 4] for text in ("a wonderful, moving story", "a terrible, boring story")]
    assert Reviews()(half)[0] > Reviews()(half)[1], "the beginning of a text says something already"


def test_word_salad_is_less_acceptable():
    sentences = ["The boy read the book.", "She said that he was late.", "I wonder who left.", "The dog that I saw was barking loudly."]
    draw = random.Random(0)
    salad = [" ".join(draw.sample(text.split(), len(text.split()))) for text in sentences for _ in range(5)]
    reward = Acceptable()
    assert reward(sentences).mean() > reward(salad).mean() + 0.1


def test_padding_is_not_read():
    """A short text beside a long one, bit for bit as alone up to rounding; and a text whose padding were read would differ."""
    net = readers.acceptable()
    rows = nets.sequence([words("a cat sat"), words("one two three four five six seven eight nine ten")])
    with torch.no_grad():
        together, alone = net(rows)[0], net(rows[:1, :4])[0]
        rows[0, 4:] = rows[1, 4:]
        filled = net(rows)[0]
    assert torch.allclose(together, alone, atol=1e-6)
    assert (filled - alone).abs().max() > 1e-3


def test_naive_bayes_is_its_formula(tmp_path):
    made = NaiveBayes.fit([("good good film", 1), ("bad film", 0), ("bad bad day", 0)])
    # Of label 1: good, film, once each; of label 0: bad twice, film, day. Four words in all, each seen once more.
    weight = {
        "good": math.log(2 / 6) - math.log(1 / 8),
        "film": math.log(2 / 6) - math.log(2 / 8),
        "bad": math.log(1 / 6) - math.log(3 / 8),
    }
    want = math.log(1 / 2) + weight["good"] + weight["film"]
    assert made.read(["good good film never"])[0, 1].item() == pytest.approx(want)
    assert made.read(["good good good"]).tolist() == made.read(["good"]).tolist(), "repeating a word gains nothing"
    made.scale = 0.5
    assert made.read(["good film"])[0].tolist() == pytest.approx([0, want / 2])
    made.save(tmp_path / "b.safetensors")
    assert torch.allclose(NaiveBayes.load(tmp_path / "b.safetensors").read(PRAISE), made.read(PRAISE), atol=1e-2)
    with pytest.raises(ValueError, match="texts of both labels"):
        NaiveBayes.fit([("good", 1)])
    with pytest.raises(ValueError, match="holds no naive Bayes"):
        NaiveBayes.load(readers.FOLDER / "reviews.safetensors")


def test_the_weights_are_small_and_their_figures_stand_beside_them():
    told = json.loads((readers.FOLDER / "training.json").read_text())
    assert told["reviews"]["held_out"]["accuracy"] > 0.76
    assert told["judge"]["test"]["accuracy"] > 0.8
    assert told["acceptable"]["dev"]["matthews"] > 0.1
    assert told["ngrams"]["names"]["held_out"]["nats_per_token"] < math.log(27) - 1
    sizes = {file.name: file.stat().st_size for file in readers.FOLDER.glob("*.safetensors")}
    assert sizes.keys() == {f"{name}.safetensors" for name in ("reviews", "judge", "acceptable", "ngram-names", "ngram-reviews")}
    assert max(sizes.values()) < 1_000_000


@pytest.mark.skipif(not (DATA / "text").is_dir(), reason=f"no texts in {DATA}; VIOT_DATA names the folder")
def test_the_figures_are_those_of_the_weights(monkeypatch):
    """What training.json says, read again from the embedded weights on what the recipe holds out."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "recipes")
    text, recipe = importlib.import_module("text"), importlib.import_module("readers")
    told = json.loads((readers.FOLDER / "training.json").read_text())
    data = DATA / "text"
    held_out = text.sentences(data)[1]
    for figures, read, texts in (
        (told["reviews"]["held_out"], readers.reviews().read, held_out),
        (told["judge"]["test"], readers.judge().read, recipe.sst(data, "test")),
        (told["acceptable"]["dev"], readers.acceptable().read, recipe.cola(data, "dev")),
    ):
        assert recipe.scores(read, texts) == pytest.approx(figures, abs=2e-3)
    for name, texts in (("names", text.names(data)[1]), ("reviews", [t for t, _ in held_out])):
        figures = told["ngrams"][name]["held_out"]
        assert readers.ngram(name).total(texts).mean().item() == pytest.approx(figures["nats_per_text"], abs=1e-3)


def test_buckets_spread_and_repeat():
    pieces = ["".join(random.Random(i).choices(string.ascii_lowercase, k=6)) for i in range(5000)]
    found = [nets.bucket(piece, 257) for piece in pieces]
    assert min(found) == 1
    assert max(found) == 256
    assert max(Counter(found).values()) < 60, "some 20 each"
    assert nets.bucket("film", nets.BAG) == 17070, "weights are kept for these places: they may never move"
