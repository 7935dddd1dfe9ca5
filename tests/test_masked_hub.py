"""Published masked language models: tiny random checkpoints in the published layouts, against computations of their own."""

import json
import math

import pytest
import torch
from diffusers import BlockRefinementScheduler, LLaDA2Pipeline
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

import viot
from viot.kernel import Categorical
from viot.models import mdlm, published
from viot.models.published import Hub, laid_out, places
from viot.models.tokens import NOTHING
from viot.testing import check_model

CORPUS = [
    "the cat sat on the mat and the dog sat on the log",
    "naïve café — crêpes, 你好 世界 😀",
    "a man a plan a canal",
    "one two three four",
]
TEMPLATE = (
    "{% for m in messages %}<|begin|>{{ m['role'] }}\n{{ m['content'] }}<|turn|>{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)


def byte_level(vocabulary=300, special=("<|endoftext|>",), **settings):
    """A byte-level BPE as GPT-2's, with these special tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, special_tokens=list(special), show_progress=False)
    bpe.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **settings)


@pytest.fixture(scope="module")
def gpt2():
    return byte_level(bos_token="<|endoftext|>", eos_token="<|endoftext|>")


@pytest.fixture(scope="module")
def chatty():
    words = byte_level(
        special=("<|endoftext|>", "<|begin|>", "<|turn|>", "<|mask|>"),
        bos_token="<|begin|>",
        eos_token="<|endoftext|>",
        mask_token="<|mask|>",
    )
    words.chat_template = TEMPLATE
    return words


def texts_with(word):
    return lambda texts: torch.tensor([float(text.count(word)) for text in texts], dtype=torch.float64)


def random_weights(shapes, seed=0, scale=0.3):
    g = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=g) for name, shape in shapes.items()}


# -- the tokenizer --------------------------------------------------------------------------------------------------------------------


TEXTS = ["the cat sat", "naïve café", "你好 世界 😀!", "", " two  spaces ", "<|endoftext|>the<|endoftext|> 😀", "a\n\tb"]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_joined_are_what_the_tokenizer_decodes(gpt2, text):
    pieces = Hub(gpt2)
    ids = pieces.encode(text)
    parts = pieces.pieces(ids)
    assert len(parts) == len(ids)
    assert "".join(parts) == gpt2.decode(ids, skip_special_tokens=True) == text.replace("<|endoftext|>", "")


def test_pieces_of_any_tokens_joined_are_what_the_tokenizer_decodes(gpt2):
    """Random tokens break characters in every way."""
    pieces, g = Hub(gpt2), torch.Generator().manual_seed(0)
    broken = 0
    for _ in range(300):
        ids = torch.randint(len(gpt2), (8,), generator=g).tolist()
        whole = gpt2.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        broken += "\ufffd" in whole
        assert "".join(pieces.pieces(ids)) == whole
    assert broken > 100


def test_a_character_is_the_piece_of_its_last_token_and_never_crosses_a_mask(gpt2):
    pieces = Hub(gpt2)
    ids = pieces.encode("😁")
    assert len(ids) > 1
    assert pieces.pieces(ids) == [""] * (len(ids) - 1) + ["😁"]
    cut = pieces.pieces([*ids[:-1], -1, ids[-1]])
    assert "".join(cut) == "\ufffd\ufffd"
    assert cut[len(ids) - 2] == "\ufffd"
    assert pieces.pieces([-1, 10_000, *pieces.encode("a")]) == ["", "", "a"]


def test_tokenizers_that_are_not_byte_level_are_read_by_how_their_texts_grow():
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2, "a": 3, "game": 4}, unk_token="[UNK]"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    pieces = Hub(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]"))
    assert pieces.table is None
    assert pieces.pieces(pieces.encode("playing a game")) == ["play", "ing", " a", " game"]


def test_prompts_are_counted_and_laid_out_in_one_column(gpt2):
    pieces = Hub(gpt2)
    the, cat = len(pieces.encode("the")), len(pieces.encode(" cat"))
    assert places("the[MASK:3] cat[MASK]", pieces) == (the + cat + 4, False)
    assert places("the[MASK:*] cat", pieces) == (the + cat, True)
    assert places("the", pieces) == (the, True)
    rows, column = laid_out([[7], [8, 9]], [[1, 2, 3], [4]])
    assert column == 2
    assert rows.tolist() == [[NOTHING, 7, 1, 2, 3], [8, 9, 4, NOTHING, NOTHING]]


# -- MDLM -----------------------------------------------------------------------------------------------------------------------------

WIDTH, DEPTH, HEADS, CONDITION = 16, 2, 2, 12


def mdlm_shapes(vocabulary):
    """The names of kuleshov-group/mdlm-owt."""
    linear = lambda name, out, into: {f"backbone.{name}.weight": (out, into), f"backbone.{name}.bias": (out,)}
    shapes = {"backbone.vocab_embed.embedding": (vocabulary, WIDTH)}
    shapes |= linear("sigma_map.mlp.0", CONDITION, 256) | linear("sigma_map.mlp.2", CONDITION, CONDITION)
    for i in range(DEPTH):
        at = f"blocks.{i}"
        shapes |= {f"backbone.{at}.{norm}.weight": (WIDTH,) for norm in ("norm1", "norm2")}
        shapes |= {f"backbone.{at}.attn_qkv.weight": (3 * WIDTH, WIDTH), f"backbone.{at}.attn_out.weight": (WIDTH, WIDTH)}
        shapes |= linear(f"{at}.mlp.0", 4 * WIDTH, WIDTH) | linear(f"{at}.mlp.2", WIDTH, 4 * WIDTH)
        shapes |= linear(f"{at}.adaLN_modulation", 6 * WIDTH, CONDITION)
    shapes |= {"backbone.output_layer.norm_final.weight": (WIDTH,)} | linear("output_layer.linear", vocabulary, WIDTH)
    return shapes | linear("output_layer.adaLN_modulation", 2 * WIDTH, CONDITION)


def mdlm_weights(vocabulary, seed=0):
    state = random_weights(mdlm_shapes(vocabulary), seed)
    head = WIDTH // HEADS
    return state | {"backbone.rotary_emb.inv_freq": torch.tensor([10_000 ** (-2 * i / head) for i in range(head // 2)])}


def mdlm_config(vocabulary, **changed):
    return {
        "model_type": "mdlm", "architectures": ["MDLM"], "vocab_size": vocabulary, "model_length": 24, "hidden_dim": WIDTH,
        "cond_dim": CONDITION, "n_blocks": DEPTH, "n_heads": HEADS, "dropout": 0.1, "time_conditioning": False,
        "auto_map": {"AutoConfig": "configuration_mdlm.MDLMConfig", "AutoModelForMaskedLM": "modeling_mdlm.MDLM"}, **changed,
    }  # fmt: skip


def written(folder, config, state, tokenizer=None):
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def owt(tmp_path_factory, gpt2):
    vocabulary = len(gpt2) + 1
    return written(tmp_path_factory.mktemp("hub") / "mdlm", mdlm_config(vocabulary), mdlm_weights(vocabulary), gpt2)


def by_hand_mdlm(state, x, sigma):
    """Section by section in float64: pairs of entries as complex numbers, attention written out, (length, vocabulary) of one row."""
    w = {name.removeprefix("backbone."): v.double() for name, v in state.items()}
    n, head = len(x), WIDTH // HEADS

    def linear(name, v):
        return v @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))

    def norm(name, v):
        centred = v - v.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]

    def gelu(v):
        return 0.5 * v * (1 + torch.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))

    def silu(v):
        return v / (1 + torch.exp(-v))

    wave = torch.tensor([f(sigma * 10_000 ** (-i / 128)) for f in (math.cos, math.sin) for i in range(128)], dtype=torch.float64)
    condition = silu(linear("sigma_map.mlp.2", silu(linear("sigma_map.mlp.0", wave))))
    turn = torch.polar(torch.ones(n, head // 2, dtype=torch.float64), torch.arange(n)[:, None].double() * w["rotary_emb.inv_freq"])
    h = w["vocab_embed.embedding"][x]
    for i in range(DEPTH):
        at = f"blocks.{i}"
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = linear(f"{at}.adaLN_modulation", condition).view(6, WIDTH)
        q, k, v = linear(f"{at}.attn_qkv", norm(f"{at}.norm1", h) * (1 + scale) + shift).view(n, 3, HEADS, head).unbind(1)
        mixed = torch.empty(n, HEADS, head, dtype=torch.float64)
        for j in range(HEADS):
            a, b = (torch.complex(u[:, j, : head // 2], u[:, j, head // 2 :]) * turn for u in (q, k))
            mixed[:, j] = ((a @ b.conj().T).real / math.sqrt(head)).softmax(-1) @ v[:, j]
        h = h + gate * linear(f"{at}.attn_out", mixed.reshape(n, WIDTH))
        inner = norm(f"{at}.norm2", h) * (1 + scale_mlp) + shift_mlp
        h = h + gate_mlp * linear(f"{at}.mlp.2", gelu(linear(f"{at}.mlp.0", inner)))
    shift, scale = linear("output_layer.adaLN_modulation", condition).view(2, WIDTH)
    return linear("output_layer.linear", norm("output_layer.norm_final", h) * (1 + scale) + shift)


def test_mdlm_computes_what_the_paper_writes(owt):
    model = viot.load(str(owt))
    g = torch.Generator().manual_seed(3)
    x = torch.randint(model.mask_id + 1, (3, 9), generator=g)
    found = model.network(x).double()
    state = load_file(owt / "model.safetensors")
    for row, logits in zip(x, found, strict=True):
        torch.testing.assert_close(logits, by_hand_mdlm(state, row, 0.0), rtol=1e-4, atol=1e-4)
    # Another noise level is another answer: without time conditioning it is 0, whatever the time.
    assert (found[0] - by_hand_mdlm(state, x[0], 1.0)).abs().max() > 1e-2


def test_mdlm_with_time_conditioning_is_told_the_noise(tmp_path, gpt2):
    vocabulary = len(gpt2) + 1
    state = mdlm_weights(vocabulary)
    model = viot.load(str(written(tmp_path / "timed", mdlm_config(vocabulary, time_conditioning=True), state, gpt2)), length=6)
    x = model.prior(2, torch.Generator())
    t = torch.tensor([0.25, 1.0], dtype=torch.float64)
    prediction = model.predict(x, t, torch.zeros(2, dtype=torch.long))
    drawn = torch.arange(vocabulary) != model.mask_id
    for i, sigma in enumerate((-math.log(0.75), -math.log(1e-3))):
        torch.testing.assert_close(
            prediction.logits[i][:, drawn].double(), by_hand_mdlm(state, x[i], sigma)[:, drawn], rtol=1e-4, atol=1e-4
        )
    with pytest.raises(ValueError, match="cached"):
        viot.load(str(tmp_path / "timed"), cached=True)


def test_mdlm_sees_both_ways_and_not_what_is_not_there(owt):
    network = mdlm.read(str(owt), json.loads((owt / "config.json").read_text()))
    x = torch.randint(200, (1, 7), generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[0, -1] += 1
    sigma = torch.zeros(1)
    assert (network(x, sigma)[0, 0] - network(other, sigma)[0, 0]).abs().max() > 1e-3
    padded = torch.nn.functional.pad(x, (0, 4), value=NOTHING)
    torch.testing.assert_close(network(padded, sigma)[:, :7], network(x, sigma), rtol=1e-4, atol=1e-5)


def test_mdlm_gives_the_token_that_begins_a_sequence_and_cuts_the_first_document(owt, gpt2):
    model = viot.load(str(owt), prompt=["the cat", "a[MASK:2] man"])
    end, free = gpt2.eos_token_id, model.mask_id
    assert (model.mask_id, model.end_id, model.length) == (len(gpt2), end, 24)
    encode = Hub(gpt2).encode
    start = model.prior(2, torch.Generator(), torch.tensor([0, 1]))
    cat, a, man = encode("the cat"), encode("a"), encode(" man")
    assert start[0].tolist() == [end, *cat, *[free] * (23 - len(cat))]
    whole = [end, *a, free, free, *man, end]
    assert start[1].tolist() == whole + [NOTHING] * (24 - len(whole))
    # A second document, and nothing after a whole text.
    x = start.clone()
    x[0, 1 + len(cat) :] = end
    x[0, -1] = man[0]
    x[1][x[1] == free] = torch.tensor(encode("bc"))
    assert model.decode(x, torch.tensor([0, 1])) == ["the cat", "abc man"]
    assert ["".join(p) for p in model.pieces(x)] == ["the cat", "abc man"]
    # A text may end at any free place, but not before what is given.
    logits = model.predict(start, torch.ones(2), torch.tensor([0, 1])).logits
    assert logits[0, -1, end].isfinite()
    assert logits[1, 1 + len(a), end] == -torch.inf
    assert (logits[..., free] == -torch.inf).all()
    assert model.encode(["the cat"])[0].tolist() == [end, *cat, *[end] * (23 - len(cat))]


def test_mdlm_prompts_beside_others_are_as_alone(owt):
    """Rows that end early are hidden where they lack places."""
    both = viot.load(str(owt), prompt=["[MASK:3]the", "one two three[MASK:3]"])
    alone = viot.load(str(owt), prompt="[MASK:3]the")
    group = torch.zeros(1, dtype=torch.long)
    x, y = (model.prior(1, torch.Generator(), group) for model in (both, alone))
    n = alone.length
    assert x.shape[1] > n
    assert torch.equal(x[:, :n], y)
    a, b = (model.predict(v, torch.ones(1), group).logits for model, v in ((both, x), (alone, y)))
    torch.testing.assert_close(a[:, :n], b, rtol=1e-4, atol=1e-5)


def test_mdlm_end_to_end(owt):
    model = viot.load(str(owt), prompt=["the", "a[MASK:4]"], length=10, order="first-hitting")
    check_model(model, steps=4)
    population = viot.sample(model, texts_with("a"), "vasr", particles=4, steps=4, seed=1, progress=False)
    assert population.shape == (2, 4)
    assert model.config["name"] == str(owt)
    assert all(text.startswith("the") for text in population.samples[0])
    assert all(text.startswith("a") for text in population.samples[1])
    torch.testing.assert_close(population.rewards[1], texts_with("a")(population.samples[1]))
    again = viot.sample(model, "count:a", "vasr", particles=4, steps=4, seed=1, progress=False)
    assert again.samples == population.samples
    assert int((population.x0 == model.mask_id).sum()) == 0


def test_mdlm_in_other_files_and_precisions(tmp_path, owt, gpt2):
    state = load_file(owt / "model.safetensors")
    config = mdlm_config(len(gpt2) + 1)
    names = sorted(state)
    first, second = ({name: state[name] for name in half} for half in (names[::2], names[1::2]))
    shards = written(tmp_path / "shards", config, first, gpt2)
    (shards / "model.safetensors").rename(shards / "model-00001-of-00002.safetensors")
    save_file(second, shards / "model-00002-of-00002.safetensors")
    index = {name: f"model-0000{1 + (name in second)}-of-00002.safetensors" for name in names}
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    pickled = written(tmp_path / "pickled", config, first, gpt2)
    (pickled / "model.safetensors").unlink()
    torch.save(state, pickled / "pytorch_model.bin")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIOT_CACHE", str(tmp_path / "cache"))
        x = torch.arange(8)[None]
        expected = viot.load(str(owt)).network(x)
        for folder in (shards, pickled):
            torch.testing.assert_close(viot.load(str(folder)).network(x), expected, rtol=1e-5, atol=1e-5)
    # The tokenizer may lie elsewhere, or be given.
    bare = written(tmp_path / "bare", config, state)
    half = viot.load(str(bare), tokenizer=gpt2, dtype="bfloat16")
    assert half.config["dtype"] == "torch.bfloat16"
    assert half.network(x).dtype == torch.float32
    assert 1e-4 < (half.network(x) - expected).abs().max() < 0.5
    assert viot.load(str(bare), tokenizer=str(owt)).end_id == gpt2.eos_token_id


def broken(state, **changes):
    """The weights with some replaced, or left out where None is given."""
    return {k: v for k, v in (state | {k.replace("__", "."): v for k, v in changes.items()}).items() if v is not None}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backbone__blocks__1__norm2__weight": None}, "lacks 'backbone.blocks.1.norm2.weight'$"),
        ({"backbone__blocks__1__norm2__bias": torch.zeros(16)}, "also holds 'backbone.blocks.1.norm2.bias'$"),
        ({"backbone__sigma_map__mlp__2__bias": torch.zeros(3)}, r"'backbone.sigma_map.mlp.2.bias' has shape \(3,\), not \(12,\)"),
        ({"backbone__rotary_emb__inv_freq": torch.ones(4)}, "other rotary positions"),
    ],
)
def test_mdlm_weights_that_do_not_fit_are_named(tmp_path, owt, gpt2, changes, said):
    state = broken(load_file(owt / "model.safetensors"), **changes)
    with pytest.raises(ValueError, match=said):
        viot.load(str(written(tmp_path / "broken", mdlm_config(len(gpt2) + 1), state, gpt2)))


def test_mdlm_mistakes(tmp_path, owt, gpt2):
    state, vocabulary = load_file(owt / "model.safetensors"), len(gpt2) + 1

    def load(settings, **config):
        return viot.load(str(written(tmp_path / "m", mdlm_config(vocabulary, **config), state, gpt2)), **settings)

    with pytest.raises(ValueError, match="n_blocks=None, where a count is needed"):
        load({}, n_blocks=None)
    with pytest.raises(ValueError, match="hidden_dim=16 for n_heads=3"):
        load({}, n_heads=3)
    with pytest.raises(ValueError, match=r"length must be from 2 to 24.*not 25"):
        load({"length": 25})
    with pytest.raises(ValueError, match=r"is not the one of .*write tokenizer="):
        load({}, vocab_size=vocabulary - 1)
    with pytest.raises(ValueError, match="takes 30 tokens"):
        load({"prompt": "[MASK:30]"})
    with pytest.raises(ValueError, match="leave variant='fp16' out"):
        load({"variant": "fp16"})
    with pytest.raises(TypeError, match="guidance_scale"):
        load({"guidance_scale": 3.0})


# -- LLaDA ----------------------------------------------------------------------------------------------------------------------------

KV = 2


def llada_config(vocabulary, **changed):
    """The entries of GSAI-ML/LLaDA-8B-Instruct, with small sizes, and fewer keys than queries."""
    return {
        "model_type": "llada", "architectures": ["LLaDAModelLM"], "d_model": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": KV,
        "mlp_hidden_size": 24, "mlp_ratio": 4, "vocab_size": vocabulary, "embedding_size": vocabulary + 5, "max_sequence_length": 256,
        "rope_theta": 500_000.0, "rms_norm_eps": 1e-5, "block_type": "llama", "layer_norm_type": "rms", "activation_type": "silu",
        "weight_tying": False, "include_bias": False, "include_qkv_bias": False, "rope": True, "alibi": False, "input_emb_norm": False,
        "scale_logits": False, "attention_layer_norm": False, "block_group_size": 1, "multi_query_attention": None,
        "auto_map": {"AutoConfig": "configuration_llada.LLaDAConfig", "AutoModel": "modeling_llada.LLaDAModelLM"}, **changed,
    }  # fmt: skip


def llada_weights(rows, seed=0):
    shapes = {
        "model.transformer.wte.weight": (rows, 16),
        "model.transformer.ln_f.weight": (16,),
        "model.transformer.ff_out.weight": (rows, 16),
    }
    for i in range(2):
        inside = {
            "attn_norm": (16,), "ff_norm": (16,), "q_proj": (16, 16), "k_proj": (4 * KV, 16), "v_proj": (4 * KV, 16), "attn_out": (16, 16),
            "ff_proj": (24, 16), "up_proj": (24, 16), "ff_out": (16, 24),
        }  # fmt: skip
        shapes |= {f"model.transformer.blocks.{i}.{name}.weight": shape for name, shape in inside.items()}
    return random_weights(shapes, seed, scale=0.5)


@pytest.fixture(scope="module")
def instruct(tmp_path_factory, chatty):
    vocabulary = len(chatty)
    ends = {"mask_token_id": chatty.mask_token_id, "eos_token_id": chatty.eos_token_id}
    return written(tmp_path_factory.mktemp("hub") / "llada", llada_config(vocabulary, **ends), llada_weights(vocabulary + 5), chatty)


def by_hand_llada(state, x, causal=False):
    """(length, vocabulary) of one row in float64: pairs as complex numbers, attention written out."""
    w = {name.removeprefix("model.transformer.").removesuffix(".weight"): v.double() for name, v in state.items()}
    n, head = len(x), 4

    def norm(v, weight):
        return v / (v.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    angle = torch.arange(n)[:, None].double() * torch.tensor([500_000.0 ** (-2 * i / head) for i in range(head // 2)], dtype=torch.float64)
    turn = torch.polar(torch.ones_like(angle), angle)
    h = w["wte"][x]
    for i in range(2):
        b = {name.removeprefix(f"blocks.{i}."): v for name, v in w.items() if name.startswith(f"blocks.{i}.")}
        inner = norm(h, b["attn_norm"])
        q, k, v = ((inner @ b[f"{c}_proj"].T).view(n, -1, head) for c in "qkv")
        mixed = torch.empty(n, 4, head, dtype=torch.float64)
        for j in range(4):
            of = j // (4 // KV)
            a, c = (torch.complex(u[..., : head // 2], u[..., head // 2 :]) * turn for u in (q[:, j], k[:, of]))
            score = (a @ c.conj().T).real / math.sqrt(head)
            if causal:
                score = score.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
            mixed[:, j] = score.softmax(-1) @ v[:, of]
        h = h + mixed.reshape(n, 16) @ b["attn_out"].T
        inner = norm(h, b["ff_norm"])
        gate = inner @ b["ff_proj"].T
        h = h + (gate / (1 + torch.exp(-gate)) * (inner @ b["up_proj"].T)) @ b["ff_out"].T
    return norm(h, w["ln_f"]) @ w["ff_out"].T


def test_llada_computes_what_is_written_and_looks_both_ways(instruct):
    model = viot.load(str(instruct))
    state = load_file(instruct / "model.safetensors")
    x = torch.randint(200, (3, 9), generator=torch.Generator().manual_seed(3))
    found = model.network(x).double()
    for row, logits in zip(x, found, strict=True):
        torch.testing.assert_close(logits, by_hand_llada(state, row), rtol=1e-4, atol=1e-4)
        assert (logits - by_hand_llada(state, row, causal=True)).abs().max() > 0.05
    # What is not there is not seen, wherever it is not: the answer is the one to the row without it.
    padded = torch.nn.functional.pad(x, (2, 3), value=NOTHING)
    torch.testing.assert_close(model.network(padded)[:, 2:11].double(), found, rtol=1e-4, atol=1e-5)


def test_llada_puts_plain_prompts_into_the_template_and_shows_the_answer(tmp_path, instruct, chatty):
    model = viot.load(str(instruct), prompt=["Say a", "the cat sat on the mat", "one[MASK:3] two"], new_tokens=6, block=2)
    assert model.kernel == Categorical(chatty.mask_token_id, order="confidence")
    start = model.prior(3, torch.Generator(), torch.arange(3))
    heads = [
        chatty.apply_chat_template([{"role": "user", "content": p}], add_generation_prompt=True, return_dict=False)
        for p in model.prompts[:2]
    ]
    for row, head in zip(start[:2], heads, strict=True):
        rest = row[row != NOTHING].tolist()
        assert rest == [*head, *[model.mask_id] * 6]
    # A prompt with free places is a text of its own, without a template.
    encode = Hub(chatty).encode
    assert start[2][start[2] != NOTHING].tolist() == [*encode("one"), *[model.mask_id] * 3, *encode(" two")]
    # Blocks are counted from the first free place, for every prompt.
    for row, block in zip(start[:2], model.blocks()[:2], strict=True):
        assert block[row == model.mask_id].tolist() == [0, 0, 1, 1, 2, 2]
    x = start.clone()
    answer = encode("the dog")
    x[0][start[0] == model.mask_id] = torch.tensor([*answer, chatty.eos_token_id, *encode("abcdef")][:6])
    assert model.decode(x, torch.arange(3))[0] == "the dog"
    assert model.decode(start, torch.arange(3))[1:] == ["______", "one___ two"]
    texts = viot.load(str(instruct), prompt="Say a", chat=False, new_tokens=2)
    assert texts.decode(texts.prior(1, torch.Generator()), torch.zeros(1)) == ["Say a__"]
    assert len(encode("Say a")) + 2 == texts.length
    # A base model has the template in its tokenizer, but was not trained on it.
    base = written(
        tmp_path / "tiny-Base", json.loads((instruct / "config.json").read_text()), load_file(instruct / "model.safetensors"), chatty
    )
    assert torch.equal(viot.load(str(base), prompt="Say a", new_tokens=2).start, texts.start)


def test_llada_prompts_of_several_lengths_are_as_alone(instruct):
    prompts = ["Say a", "the cat sat on the mat and the dog"]
    both = viot.load(str(instruct), prompt=prompts, new_tokens=5)
    for g, prompt in enumerate(prompts):
        alone = viot.load(str(instruct), prompt=prompt, new_tokens=5)
        x, y = both.prior(1, torch.Generator(), torch.tensor([g])), alone.prior(1, torch.Generator())
        there = x[0] != NOTHING
        assert torch.equal(x[0][there], y[0])
        a = both.predict(x, torch.ones(1), torch.tensor([g])).logits[0][there]
        b = alone.predict(y, torch.ones(1), torch.tensor([0])).logits[0]
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_llada_reveals_block_after_block(instruct):
    model = viot.load(str(instruct), prompt="Say a", new_tokens=6, block=2)
    seen = []

    def watch(texts):
        seen.extend(texts)
        return torch.zeros(len(texts))

    run = viot.prepare(model, watch, "base", particles=3, steps=6, seed=0)
    blocks = model.blocks()[0]
    steps = set()
    for state in run.states():
        steps.add(state.step)
        for row in (state.x == model.mask_id).flatten(0, -2):
            # One place per step, and of no block before the one before is full.
            assert blocks[row].tolist() == [0, 0, 1, 1, 2, 2][state.step :]
    assert {1, 3, 5} <= steps
    assert len(seen) >= 3


def test_llada_end_to_end(instruct):
    model = viot.load(str(instruct), prompt=["Say a", "the cat sat on the mat"], new_tokens=8, block=4)
    check_model(model, steps=4)
    population = viot.sample(model, "count:a", "vasr", particles=4, steps=4, seed=0, lam=0.5, progress=False)
    assert population.shape == (2, 4)
    assert not any("user" in text or "Say" in text for group in population.samples for text in group)
    torch.testing.assert_close(population.rewards, torch.stack([texts_with("a")(group) for group in population.samples]))
    infilled = viot.load(str(instruct), prompt="a[MASK:3] man", new_tokens=8)
    texts = viot.sample(infilled, texts_with("a"), "fkd", particles=4, steps=3, seed=1, progress=False).samples[0]
    assert all(text.startswith("a") and text.endswith(" man") for text in texts)


def test_llada_weights_and_settings_that_do_not_fit_are_named(tmp_path, instruct, chatty):
    state, config = load_file(instruct / "model.safetensors"), json.loads((instruct / "config.json").read_text())

    def load(changes=None, settings=None, tokenizer=chatty, **changed):
        changed = {k: v for k, v in (config | changed).items() if v != "absent"}
        return viot.load(str(written(tmp_path / "m", changed, broken(state, **(changes or {})), tokenizer)), **(settings or {}))

    with pytest.raises(ValueError, match=r"lacks 'model.layers.1.mlp.up_proj.weight'"):
        load({"model__transformer__blocks__1__up_proj__weight": None})
    with pytest.raises(ValueError, match=r"also holds 'model.transformer.blocks.0.q_proj.bias'"):
        load({"model__transformer__blocks__0__q_proj__bias": torch.zeros(16)})
    with pytest.raises(ValueError, match="another shape"):
        load({"model__transformer__ln_f__weight": torch.zeros(3)})
    for name, value in (("alibi", True), ("layer_norm_type", "default"), ("include_bias", True), ("activation_type", "swiglu")):
        with pytest.raises(ValueError, match=f"says {name}={value!r}; only LLaDA with {name}="):
            load(**{name: value})
    with pytest.raises(ValueError, match="is a LLaDAMoEModelLM, not a LLaDA in the layout"):
        load(n_layers="absent", architectures=["LLaDAMoEModelLM"])
    with pytest.raises(ValueError, match="room for 256: less new_tokens"):
        load(settings={"new_tokens": 257})
    with pytest.raises(ValueError, match="new_tokens must be at least 1"):
        load(settings={"new_tokens": 0})
    plain = byte_level(eos_token="<|endoftext|>")
    with pytest.raises(ValueError, match="no chat template"):
        viot.load(str(instruct), tokenizer=plain, chat=True, prompt="a")
    assert viot.load(str(instruct), tokenizer=plain, prompt="a", new_tokens=3).length == 4
    assert load(torch_dtype="bfloat16").network.network.dtype == torch.bfloat16
    assert load({"model__transformer__ff_out__weight": None}, weight_tying=True).network.network.lm_head.weight.shape[0] == len(chatty) + 5


def test_a_tokenizer_that_begins_texts_with_a_token_has_it_given(instruct):
    words = byte_level(special=("<|endoftext|>", "<|begin|>"), bos_token="<|begin|>", eos_token="<|endoftext|>")
    begin = words.bos_token_id
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", begin)])
    model = viot.load(str(instruct), tokenizer=words, prompt="the", new_tokens=2)
    assert model.prior(1, torch.Generator())[0].tolist() == [begin, *Hub(words).encode("the"), model.mask_id, model.mask_id]


# -- LLaDA2 through diffusers ---------------------------------------------------------------------------------------------------------


def llada2(words, block=4, sharp=1.0, seed=0):
    """A pipeline whose network looks both ways and heeds attention masks and positions, `sharp` times as sure as it was made."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
    network = BertForMaskedLM(BertConfig(vocab_size=len(words), initializer_range=0.5, **sizes)).eval().requires_grad_(False)
    network.cls.predictions.bias.normal_()
    network.cls.predictions.bias[words.mask_token_id] = -1e4
    if sharp != 1:
        network.cls.predictions.transform.LayerNorm.weight.mul_(sharp)
        network.cls.predictions.bias.mul_(sharp)
    pipe = LLaDA2Pipeline(network, BlockRefinementScheduler(block_length=block), words)
    pipe.set_progress_bar_config(disable=True)
    return pipe


OFF = {"threshold": 2.0, "editing_threshold": None, "eos_early_stop": False}


@pytest.mark.parametrize("prompt", ["Say a", "the cat sat on the mat"])
def test_llada2_says_of_every_state_of_the_pipelines_loop_what_the_pipeline_heard(chatty, prompt, monkeypatch):
    """Every call of the pipeline's own loop: its window, and the logits of the block at work, from our adapter bit for bit."""
    pipe = llada2(chatty)
    heard = []
    forward = pipe.model.forward

    def listen(x, **named):
        answer = forward(x, **named)
        heard.append((x.clone(), named["attention_mask"], named["position_ids"], answer.logits))
        return answer

    monkeypatch.setattr(pipe.model, "forward", listen)
    pipe(prompt, gen_length=9, num_inference_steps=4, **OFF)
    recorded, heard[:] = list(heard), []
    model = viot.from_pipeline(pipe, prompt=prompt, gen_length=9)
    length = model.length
    compared = 0
    for window, attention, position, logits in recorded:
        # The pipeline's window, without the places past the end that it fills too, as a state of ours.
        x = torch.full((1, length), model.mask_id)
        n = min(length, window.shape[1])
        x[:, :n] = window[:, :n]
        if (x[:, n - 4 : n] == model.mask_id).sum() == 0 or not (x[0, n - 4 + (window.shape[1] - n) : n] == model.mask_id).any():
            continue
        ours = model.network(x)
        ids, named_attention, named_position, _ = heard.pop()
        assert torch.equal(named_attention, attention)
        assert torch.equal(named_position, position)
        assert torch.equal(ids[attention.bool()], window[attention.bool()])
        begin = window.shape[1] - 4
        assert torch.equal(ours[0, begin:n], logits[0, begin:n])
        # Later blocks: the end token for certain.
        assert (ours[0, n:].argmax(-1) == model.end_id).all()
        compared += 1
    assert compared >= 6


class Half:
    """A draw without chance."""

    def normal(self, shape, dtype, device):
        raise NotImplementedError

    def uniform(self, shape):
        return torch.full(shape, 0.5, dtype=torch.float64)


@pytest.mark.parametrize(("prompt", "per_block"), [("Say a", 4), ("the cat sat on", 4), ("aligned", 2), ("aligned", 4)])
def test_llada2_reveals_what_the_pipeline_reveals(chatty, prompt, per_block):
    """Our order with the likeliest tokens in place of drawn ones is the pipeline's loop at temperature 0, token by token."""
    pipe = llada2(chatty)
    ids = chatty.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False)
    if prompt == "aligned":
        prompt += "x" * (-len(ids) % 4)
        ids = chatty.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False)
        assert len(ids) % 4 == 0
    n = 16 - len(ids) % 4
    theirs = pipe(prompt, gen_length=n, num_inference_steps=per_block, **OFF)
    model = viot.from_pipeline(pipe, prompt=prompt, gen_length=n, **OFF)
    grid = model.grid(n * per_block // 4)
    group = torch.zeros(1, dtype=torch.long)
    found = {}
    for order in ("confidence", "left"):
        model.kernel = Categorical(model.mask_id, order=order)
        x = model.prior(1, torch.Generator())
        for j, t in enumerate(grid.times):
            prediction = model.predict(x, t.expand(1), group)
            moved, _ = model.kernel.step(x, prediction, grid.coeffs(j), 0.0, Half())
            x = torch.where((x == model.mask_id) & (moved != model.mask_id), model.kernel.guess(x, prediction)[:, 0], x)
        found[order] = x
    assert torch.equal(found["confidence"][:, -n:], theirs.sequences)
    assert model.decode(found["confidence"], group) == theirs.texts
    # Another order is another text.
    assert not torch.equal(found["left"][:, -n:], theirs.sequences)


def test_llada2_blocks_are_counted_from_the_beginning_of_each_prompt(chatty):
    pipe = llada2(chatty)
    prompts = ["Say a", "the cat sat on the mat"]
    model = viot.from_pipeline(pipe, prompt=prompts, gen_length=6)
    start = model.prior(2, torch.Generator(), torch.arange(2))
    for g, prompt in enumerate(prompts):
        head = chatty.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False)
        free = start[g] == model.mask_id
        assert start[g][start[g] != NOTHING].tolist() == [*head, *[model.mask_id] * 6]
        assert model.blocks()[g][free].tolist() == [(len(head) + i) // 4 for i in range(6)]
        # Beside others as alone.
        alone = viot.from_pipeline(pipe, prompt=prompt, gen_length=6)
        y = alone.prior(1, torch.Generator())
        a = model.predict(start, torch.ones(2), torch.arange(2)).logits[g][start[g] != NOTHING]
        torch.testing.assert_close(a, alone.predict(y, torch.ones(1), torch.tensor([0])).logits[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(TypeError, match="looks at one block"):
        model.nll(start)


def test_llada2_end_to_end(chatty):
    pipe = llada2(chatty)
    model = viot.from_pipeline(pipe, prompt=["Say a", "the cat sat on the mat"], gen_length=7, block_length=4, top_p=0.9, top_k=20)
    letters = lambda texts: torch.tensor([0.2 * len(set(text)) for text in texts], dtype=torch.float64)
    check_model(model, steps=4)
    population = viot.sample(model, letters, "vasr", particles=4, steps=4, seed=0, progress=False)
    torch.testing.assert_close(population.rewards, torch.stack([letters(group) for group in population.samples]))
    assert int((population.x0 == model.mask_id).sum()) == 0
    logits = model.network(model.prior(2, torch.Generator(), torch.arange(2)))
    assert int(logits[0].isfinite().sum(-1).max()) <= 20
    # A conversation, and tokens.
    talk = viot.from_pipeline(pipe, messages=[{"role": "user", "content": "Say a"}], gen_length=7)
    ids = talk.start[:, :-7]
    assert talk.prompts == ["Say a"]
    assert torch.equal(viot.from_pipeline(pipe, input_ids=ids, gen_length=7).start, talk.start)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"threshold": 0.7}, TypeError, "threshold=0.7 can't be honoured"),
        ({"editing_threshold": 0.5}, TypeError, "editing_threshold=0.5 can't be honoured"),
        ({"eos_early_stop": True}, TypeError, "eos_early_stop=True"),
        ({"minimal_topk": 2}, TypeError, "minimal_topk=2"),
        ({"sampling_method": "greedy"}, TypeError, "sampling_method='greedy'"),
        ({"num_inference_steps": 8}, TypeError, "say steps= to viot.sample"),
        ({"output_type": "seq"}, TypeError, "samples come as texts"),
        ({"temperatur": 1.0}, ValueError, "did you mean 'temperature'"),
        ({"temperature": 0.0}, ValueError, "nothing is drawn"),
        ({"gen_length": 0}, ValueError, "gen_length must be at least 1"),
        ({"messages": [{"role": "user", "content": "a"}]}, ValueError, "one of them: 2"),
        ({"tiny_vae": object()}, ValueError, "no decoder"),
    ],
)
def test_llada2_options_that_have_no_place_here_are_named(chatty, settings, error, said):
    with pytest.raises(error, match=said):
        viot.from_pipeline(llada2(chatty), **({"prompt": "a", "gen_length": 4} | settings))


# -- finding them ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*local_dir_use_symlinks:UserWarning")
def test_what_is_not_here_says_what_to_try(tmp_path, monkeypatch, owt, gpt2):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(OSError, match=r"kuleshov-group/mdlm-owt .*hf download kuleshov-group/mdlm-owt"):
        viot.load("kuleshov-group/mdlm-owt", prompt="a")
    config, state = json.loads((owt / "config.json").read_text()), load_file(owt / "model.safetensors")
    empty = written(tmp_path / "empty", config, state, gpt2)
    (empty / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"it has no model.safetensors"):
        viot.load(str(empty))
    # Without a tokenizer of its own, GPT-2's: which is not on this machine.
    with pytest.raises(OSError, match=r"gpt2 .*write tokenizer='./folder'"):
        viot.load(str(written(tmp_path / "bare", config, state)))


def test_nobodys_code_is_run_and_nobody_is_asked(tmp_path, monkeypatch, owt, gpt2):
    """A repository whose network and tokenizer come with code of their own."""
    config, state = json.loads((owt / "config.json").read_text()), load_file(owt / "model.safetensors")
    folder = written(tmp_path / "coded", config, state, gpt2)
    for name in ("configuration_mdlm", "modeling_mdlm", "tokenization_mdlm"):
        (folder / f"{name}.py").write_text("raise RuntimeError('this was run')")
    words = json.loads((folder / "tokenizer_config.json").read_text())
    words |= {"tokenizer_class": "MDLMTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_mdlm.MDLMTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))

    def asked(*_):
        raise AssertionError("somebody was asked")

    monkeypatch.setattr("builtins.input", asked)
    model = viot.load(str(folder), prompt="the cat")
    assert model.decode(model.encode(["the cat"]), torch.zeros(1)) == ["the cat"]
    assert torch.equal(model.start, viot.load(str(owt), prompt="the cat").start)


def test_other_language_models_are_refused_by_name(tmp_path):
    folder = written(tmp_path / "bert", {"model_type": "bert", "architectures": ["BertForMaskedLM"]}, {"w": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"type 'bert'.*mdlm, llada.*MaskedLM"):
        viot.load(str(folder))
    assert published.config_of(tmp_path / "nowhere") is None


def test_a_repository_of_the_hub_is_read_like_a_folder(monkeypatch, owt):
    """Files come one by one from the hub; here, from a folder that stands for it."""
    asked = []

    def download(repository, name, revision=None):
        asked.append((repository, name, revision))
        if not (owt / name).is_file():
            raise FileNotFoundError(f"{repository} has no {name}")
        return str(owt / name)

    def no_pipeline(*_, **__):
        raise OSError("no model_index.json")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("diffusers.DiffusionPipeline.load_config", no_pipeline)
    model = viot.load("somebody/mdlm", tokenizer=str(owt), revision="main", prompt="the", length=8)
    assert torch.equal(model.network(torch.arange(4)[None]), viot.load(str(owt)).network(torch.arange(4)[None]))
    assert {("somebody/mdlm", "config.json", "main"), ("somebody/mdlm", "model.safetensors", "main")} <= set(asked)
    assert model.config["name"] == "somebody/mdlm"
    assert model.config["revision"] == "main"
