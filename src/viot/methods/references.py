"""Whom to cite for which method."""

from __future__ import annotations

FLEMING_VIOT = """\
@misc{fvd2026,
  year          = {2026},
  eprint        = {2604.06779},
  archivePrefix = {arXiv},
  note          = {Fleming--Viot Diffusion (v1) and VASR (v2); see arXiv for the title and authors}
}"""

FK_STEERING = """\
@misc{singhal2025general,
  title         = {A General Framework for Inference-time Scaling and Steering of Diffusion Models},
  author        = {Raghav Singhal and Zachary Horvitz and Ryan Teehan and Mengye Ren and Zhou Yu and Kathleen McKeown and Rajesh Ranganath},
  year          = {2025},
  eprint        = {2501.06848},
  archivePrefix = {arXiv}
}"""

#: BibTeX by the method's name. The baselines (base, best-of-n, importance) have no paper of their own.
REFERENCES: dict[str, str] = {
    "fkd": FK_STEERING,
    "fvd": FLEMING_VIOT,
    "vasr": FLEMING_VIOT,
    "vasr-max": FLEMING_VIOT,
}
