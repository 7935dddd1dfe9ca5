import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
# Small tensors: threads only get in each other's way.
torch.set_num_threads(1)
