"""What takes long and seldom breaks."""

from tests.data import test_pipeline as pipeline
from tests.data.conftest import small_tokenizer  # noqa: F401 (a fixture)
from tests.data.test_pipeline import recipe, small_pieces  # noqa: F401 (fixtures)
from tests.kernels.cpu.test_products import run

# What Numba made for this processor, made for another one: no code of x86 may be in it.
ARM = r"""
import re
import llvmlite.binding as llvm
from stablelm.kernels.cpu.products import _few4, _few8
llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
machine = llvm.Target.from_triple("aarch64-unknown-linux-gnu").create_target_machine(cpu="neoverse-n1", opt=3)
for function in (_few4, _few8):
    text, *_ = function.inspect_llvm().values()
    text = re.sub('^target (triple|datalayout).*$', "", text, flags=re.M)
    module = llvm.parse_assembly(re.sub('"target-(cpu|features)"="[^"]*"', "", text))
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    module.verify()
    print("x86" in text, len(re.findall(r"\tmla\tv[0-9]+[.]4s", machine.emit_assembly(module))) > 100)
"""


def test_the_portable_kernels_compile_for_arm(tmp_path, root):
    """Not run there: no such machine was at hand. Their sums are multiplications of whole vectors."""
    done = run("portable", tmp_path, root, ARM)
    assert done.stdout == "portable\nFalse True\nFalse True\n", done.stderr


def test_a_preparation_in_one_process_killed_again_and_again(recipe, tmp_path, small_pieces):  # noqa: F811
    pipeline.test_killed_again_and_again_the_bytes_are_the_same(recipe, tmp_path, small_pieces, 1)
