"""On an accelerator, where there is one: the pipelines in half precision, and nothing that mixes devices."""

from __future__ import annotations

import pytest
import torch
from helpers import quiet

if not torch.cuda.is_available():
    pytest.skip("no CUDA device here", allow_module_level=True)
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tiny import EMBEDS, FAMILIES

import viot

DEVICE = torch.device("cuda")
# Their inputs are pictures and embeddings on the CPU, which the pipelines move or not.
NAMES = [name for name, (_, call, _) in FAMILIES.items() if not set(call) & {*EMBEDS, "image_embeds", "prompt_embeds"}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_on_the_device(name, dtype):
    build, call, shape = FAMILIES[name]
    pipe = build().to(DEVICE, dtype)
    model = viot.from_pipeline(pipe, **call)
    assert model.device.type == "cuda"
    with quiet():
        whole = viot.sample(model, "brightness", "vasr", particles=4, steps=3, lam=5.0, progress=False)
        sliced = viot.sample(model, "brightness", "vasr", particles=4, steps=3, lam=5.0, batch_size=3, progress=False)
    assert whole.samples.shape == (1, 4, *shape)
    assert whole.samples.device.type == "cpu"
    assert whole.samples.dtype == torch.float32
    assert bool(whole.samples.isfinite().all())
    if dtype == torch.float32:
        assert (whole.samples - sliced.samples).abs().max() < 1e-2


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_the_device_computes_what_the_cpu_does(name):
    build, call, _ = FAMILIES[name]
    models = [viot.from_pipeline(build().to(device), **call) for device in ("cpu", DEVICE)]
    x, t = models[0].prior(2, torch.Generator().manual_seed(0)), models[0].grid(4).times[1]
    with torch.no_grad():
        here, there = (m.predict(x.to(m.device), t.to(m.device).expand(2), torch.zeros(2, dtype=torch.long)) for m in models)
    assert torch.equal(models[1].prior(2, torch.Generator().manual_seed(0)).cpu(), x)
    assert (here.x0 - there.x0.cpu()).abs().max() < 1e-2 * (1 + here.x0.abs().max())


def test_out_of_memory_is_survived():
    class Greedy(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network, self.config, self.dtype = network, network.config, torch.float32

        def forward(self, x, *args, **kwargs):
            if len(x) > 4:
                torch.empty(1 << 50, device=x.device)
            return self.network(x, *args, **kwargs)

    build, call, _ = FAMILIES["sd"]
    pipe = build().to(DEVICE)
    pipe.unet = Greedy(pipe.unet)
    model = viot.from_pipeline(pipe, **call)
    with pytest.warns(viot.SteeringWarning, match="memory is too small"):
        population = viot.sample(model, "brightness", "base", particles=6, steps=2, progress=False)
    assert population.nfe == 12
