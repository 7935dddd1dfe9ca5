"""Write a method of your own: the particle loop with one other verb.

    python examples/your_method.py

Tempered SMC: the strength grows linearly along the run, G_t = exp(λ (γ_t r_t − γ_{t+1} r_{t+1})). It says which potential a path
has reached; everything else (selection, exact weights, evidence, budget, checkpoints, lineages, the report) comes with the loop.
"""

from dataclasses import dataclass
from typing import ClassVar

import viot
from viot import weights
from viot.methods import ResamplingSMC
from viot.rewards import Quadratic
from viot.testing import check_method


@dataclass(frozen=True)
class Tempered(ResamplingSMC):
    """Linearly tempered potentials. `power` bends the schedule: γ = (share of the run done)^power."""

    name: ClassVar[str] = "tempered"
    power: float = 1.0

    def weigh(self, problem, state):
        gamma = (state.step / problem.T) ** self.power
        return self.reach(state, weights.tilt(state.rewards, problem.lam * gamma))


def main():
    check_method(Tempered())
    model, reward = viot.load("gaussian"), Quadratic(center=[1.0, 1.0], precision=4.0)
    _, log_z = model.chain_law(30, eta=1.0).tilt(reward.center, reward.precision)
    for method in ("importance", "fkd", Tempered(), Tempered(power=2.0)):
        population = viot.sample(model, reward, method, particles=256, groups=32, steps=30, progress=False)
        error = (population.log_z - log_z).square().mean().sqrt()
        print(f"{population.config['method']['name']:10s} ESS {population.ess.mean():5.0f} of 256   error of log Z {error:.3f}")


if __name__ == "__main__":
    main()
