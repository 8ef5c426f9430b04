"""The job for `fabric run`, `torchrun` and SLURM: the same words as `medvill`.

fabric run --accelerator cuda --devices 8 --strategy ddp --precision bf16-mixed tasks/run.py -- fit -c RECIPE
torchrun --nproc-per-node 8 tasks/run.py fit -c RECIPE
srun python tasks/run.py fit -c RECIPE
"""

import sys

from medvill_pl.cli import main

if __name__ == "__main__":
    sys.exit(main())
