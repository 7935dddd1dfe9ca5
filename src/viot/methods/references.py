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

TWISTED = """\
@misc{wu2023practical,
  title         = {Practical and Asymptotically Exact Conditional Sampling in Diffusion Models},
  author        = {Luhuan Wu and Brian L. Trippe and Christian A. Naesseth and David M. Blei and John P. Cunningham},
  year          = {2023},
  eprint        = {2306.17775},
  archivePrefix = {arXiv}
}"""

ALIGNMENT = """\
@misc{kim2025test,
  title         = {Test-time Alignment of Diffusion Models without Reward Over-optimization},
  author        = {Sunwoo Kim and Minkyu Kim and Dongmin Park},
  year          = {2025},
  eprint        = {2501.05803},
  archivePrefix = {arXiv}
}"""

POSTERIOR = """\
@misc{chung2022diffusion,
  title         = {Diffusion Posterior Sampling for General Noisy Inverse Problems},
  author        = {Hyungjin Chung and Jeongsol Kim and Michael T. Mccann and Marc L. Klasky and Jong Chul Ye},
  year          = {2022},
  eprint        = {2209.14687},
  archivePrefix = {arXiv}
}"""

DECODING = """\
@misc{li2024derivative,
  title         = {Derivative-Free Guidance in Continuous and Discrete Diffusion Models with Soft Value-Based Decoding},
  author        = {Xiner Li and Yulai Zhao and Chenyu Wang and Gabriele Scalia and Gokcen Eraslan and Surag Nair and Tommaso Biancalani and Shuiwang Ji and Aviv Regev and Sergey Levine and Masatoshi Uehara},
  year          = {2024},
  eprint        = {2408.08252},
  archivePrefix = {arXiv}
}"""

TREE_SAMPLING = """\
@misc{jain2025diffusion,
  title         = {Diffusion Tree Sampling: Scalable inference-time alignment of diffusion models},
  author        = {Vineet Jain and Kusha Sareen and Mohammad Pedramfar and Siamak Ravanbakhsh},
  year          = {2025},
  eprint        = {2506.20701},
  archivePrefix = {arXiv}
}"""

CORRECTORS = """\
@misc{skreta2025feynman,
  title         = {Feynman-Kac Correctors in Diffusion: Annealing, Guidance, and Product of Experts},
  author        = {Marta Skreta and Tara Akhound-Sadegh and Viktor Ohanesian and Roberto Bondesan and Al{\\'a}n Aspuru-Guzik and Arnaud Doucet and Rob Brekelmans and Alexander Tong and Kirill Neklyudov},
  year          = {2025},
  eprint        = {2503.02819},
  archivePrefix = {arXiv}
}"""

GIRSANOV = """\
@misc{urge2026,
  year          = {2026},
  eprint        = {2605.17850},
  archivePrefix = {arXiv},
  note          = {URGE: unbiased resampling via Girsanov estimation; see arXiv for the title and authors}
}"""

TRUST_REGION = """\
@misc{tritsmc2026,
  year          = {2026},
  eprint        = {2605.25123},
  archivePrefix = {arXiv},
  note          = {TRI-TSMC: trust-region iterative twisted SMC; see arXiv for the title and authors}
}"""

TREE_SEARCH = """\
@misc{treasure2025,
  year          = {2025},
  eprint        = {2509.23146},
  archivePrefix = {arXiv},
  note          = {TReASURe: tree reward-aligned search for masked diffusion language models; see arXiv for the title and authors}
}"""

#: BibTeX by the method's name. The baselines (base, best-of-n, importance) have no paper of their own.
REFERENCES: dict[str, str] = {
    "das": ALIGNMENT,
    "dps": POSTERIOR,
    "dts": TREE_SAMPLING,
    "dts-star": TREE_SAMPLING,
    "fkc": CORRECTORS,
    "fkd": FK_STEERING,
    "fvd": FLEMING_VIOT,
    "svdd": DECODING,
    "svdd-r": DECODING,
    "tds": TWISTED,
    "treasure": TREE_SEARCH,
    "tri-tsmc": TRUST_REGION,
    "urge": GIRSANOV,
    "vasr": FLEMING_VIOT,
    "vasr-max": FLEMING_VIOT,
}
