# lit suite of the compiler and the tools: .mlir tests, and .test files whose RUN lines are all there is.
#
# Environment: MOIRA_ROUNDTRIP=1 makes every moe-opt call a round-trip test as well (IR is printed, parsed and compared before the
# passes run).
# Substitutions beside lit's own: moe-opt, moe-run, moe-inspect, moe-ckpt, moira-kernel-test, FileCheck (with -enable-var-scope), not,
# count, split-file, %golden (golden models),
# %configs (config.json files without weights), %examples, %python (with the packages of python/requirements-test.txt and requirements-transformers.txt).
# Features: compiler, mpi, ptxas, cuda-toolkit.

import os
import shutil
from pathlib import Path

import lit.formats

config.name = "Moira"
config.test_format = lit.formats.ShTest(execute_external=False)
config.suffixes = [".mlir", ".test"]
config.excludes = ["Inputs", "Unit", "golden", "configs", "Fuzz"]
config.test_source_root = os.path.dirname(__file__)
config.test_exec_root = os.path.join(config.moira_build_dir, "test")

source, build = Path(config.moira_source_dir), Path(config.moira_build_dir)
programs = build / "bin"
llvm = Path(config.llvm_tools_dir)

moe_opt = str(programs / "moe-opt")
if os.environ.get("MOIRA_ROUNDTRIP") == "1":
    moe_opt += " --verify-roundtrip"

# Whole words only, and not the words inside of longer names or paths.
def tool(name, command):
    config.substitutions.append((rf"(?<![\w./%-]){name}(?![\w./-])", command))


tool("moe-opt", moe_opt)
tool("moe-run", str(programs / "moe-run"))
tool("moe-inspect", str(programs / "moe-inspect"))
tool("moe-ckpt", str(programs / "moe-ckpt"))
tool("moira-kernel-test", str(programs / "moira-kernel-test"))
tool("FileCheck", f"{llvm / 'FileCheck'} -enable-var-scope --dump-input-filter=all")
for name in ("not", "count", "split-file"):
    tool(name, str(llvm / name))
venv = build / "venv" / "bin" / "python"
config.substitutions += [
    ("%golden", str(source / "test" / "golden")),
    ("%configs", str(source / "test" / "configs")),
    ("%examples", str(source / "examples")),
    ("%python", f"env PYTHONPATH={source / 'python'} {venv if venv.exists() else 'python3'}"),
]

for name in ("HOME", "TMPDIR", "ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS"):
    if name in os.environ:
        config.environment[name] = os.environ[name]


def found(program):
    return shutil.which(program) or shutil.which(program, path="/usr/local/cuda/bin")


if config.moira_has_compiler:
    config.available_features.add("compiler")
if found("mpirun"):
    config.available_features.add("mpi")
if found("ptxas"):
    config.available_features.add("ptxas")
    config.substitutions.append(("%ptxas", found("ptxas")))
if found("nvcc"):
    config.available_features.add("cuda-toolkit")
