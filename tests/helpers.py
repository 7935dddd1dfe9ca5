"""What several test files share: small models and rewards, quiet runs, and bit-equality of whole answers."""

import contextlib
import json
import warnings

import torch

import viot
from viot import cli
from viot.methods import make, methods
from viot.testing import _alike

#: Those that move masked sequences only, and all others, which move any state.
TOKEN_METHODS = [name for name in methods if getattr(make(name), "needs_tokens", False)]
METHODS = [name for name in methods if name not in TOKEN_METHODS]
STEPS = 6


class Line:
    """A stranger's model: N(0, ½) data in two dimensions, written against the protocol alone. t is σ."""

    event_shape = (2,)
    dtype = torch.float64
    device = torch.device("cpu")
    calls = 0

    def grid(self, steps):
        sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        return viot.Grid(sigmas[:-1], (1 - sigmas**2).sqrt(), sigmas)

    def prior(self, n, generator):
        return torch.randn(n, 2, generator=generator, dtype=self.dtype)

    def predict(self, x, t, group):
        self.calls += 1
        gain = (1 - t**2).sqrt() * 0.5 / ((1 - t**2) * 0.5 + t**2)
        return viot.Prediction(x * gain[:, None])

    def decode(self, x0, group):
        return x0


class Tokens:
    """A masked model of 3 tokens over an alphabet of 4 (mask = 4), whose logits depend on what is revealed."""

    event_shape, dtype, device = (3,), torch.int64, torch.device("cpu")
    kernel = viot.Categorical(mask_id=4)

    def grid(self, steps):
        alphas = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        return viot.Grid(alphas[:-1], alphas, 1 - alphas)

    def prior(self, n, generator):
        return torch.full((n, 3), 4)

    def predict(self, x, t, group):
        known = torch.where(x == 4, 0, x + 1).double()
        vocabulary = torch.arange(4, dtype=torch.float64)
        tilt = known.sum(-1)[:, None, None] / 5 + torch.arange(3, dtype=torch.float64)[:, None] / 3
        logits = -(vocabulary - tilt).square().expand(len(x), 3, 4)
        return viot.Prediction(logits.argmax(-1), logits=logits)

    def decode(self, x0, group):
        return ["".join("abcd?"[i] for i in row) for row in x0.tolist()]


class Pictures(Line):
    """A model of small colour pictures, with these prompts."""

    event_shape, dtype = (3, 4, 4), torch.float32

    def __init__(self, prompts=None):
        self.prompts = prompts

    def prior(self, n, generator):
        return torch.randn(n, 3, 4, 4, generator=generator)

    def predict(self, x, t, group):
        return viot.Prediction(x * (1 - t**2).sqrt().to(x)[:, None, None, None])

    def decode(self, x0, group):
        return x0.sigmoid()


def close(samples):
    """−|x − (1, 1)|², summed without a reduction whose order could change with the batch."""
    gap = samples - 1
    return -(gap[:, 0] ** 2 + gap[:, 1] ** 2)


class Differentiable:
    name, differentiable = "close", True

    def __call__(self, samples):
        return close(samples)


@contextlib.contextmanager
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", viot.SteeringWarning)
        yield


def settings(method, **changes):
    """Small settings with room for the dearest method: at least 4 particles of it."""
    cost = make(method).cost(changes.get("steps", STEPS))
    return {"steps": STEPS, "particles": max(8, 4 * cost // STEPS), "progress": False, "seed": 5, **changes}


def run(method, model=None, reward=None, **changes):
    with quiet():
        return viot.sample(model or Line(), reward or Differentiable(), method, **settings(method, **changes))


FIELDS = ("x0", "samples", "rewards", "log_weights", "log_z", "roots", "ancestors", "trace", "parts")
COUNTS = ("nfe", "grad_rows", "decode_rows", "reward_rows", "faults")


def differing(a, b, costs=True):
    """Names of what differs between two populations, bit for bit."""
    out = []
    for name in FIELDS + (COUNTS if costs else ()):
        x, y = getattr(a, name), getattr(b, name)
        if isinstance(x, dict):
            same = x.keys() == y.keys() and all(_alike(x[k], y[k], 0.0) and x[k].dtype == y[k].dtype for k in x)
        else:
            same = _alike(x, y, 0.0) and getattr(x, "dtype", None) == getattr(y, "dtype", None)
        if not same:
            out.append(name)
    return out


def viot_(*argv):
    """The command line, in this process: its exit code."""
    return cli.main([str(a) for a in argv])


def rows(folder):
    """The rows in a bench's folder, by the names of their files."""
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "rows").iterdir())}
