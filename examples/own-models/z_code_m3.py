"""Plans Z-code M3 at its published size, 24 encoder and 12 decoder layers with 64 experts in every other one, for 32 ranks.

    PYTHONPATH=python build/venv/bin/python examples/own-models/z_code_m3.py OUTPUT_DIRECTORY

No weights are needed to plan: the report says what each rank will hold and send.
"""

import sys
from pathlib import Path

from moira import compile_plan
from moira.recipes import z_code_m3

directory = Path(sys.argv[1])
path = z_code_m3().write(directory, batch=64, seq=128, dec_seq=128)
print(compile_plan(path, directory / "z-code-m3.moeplan", "--mesh=dp=2,ep=16").err)
