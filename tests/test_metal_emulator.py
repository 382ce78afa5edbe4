"""The Metal emulator: it refuses what Metal would, accepts what Metal would, and says where."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import get_args

import mlx.core as mx
import numpy as np
import pytest

from tests.metal_emulator import (
    Kind,
    MetalError,
    emulator_options,
    metal_kernel,
    record_launches,
    run_kernel,
    unavailable,
)
from tests.metal_emulator.cases import Case, I, L, X
from tests.metal_emulator.dtypes import from_bfloat16, to_bfloat16
from tests.metal_emulator.right_kernels import RIGHT
from tests.metal_emulator.wrong_kernels import WRONG

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "available")

COPY = I + "out[i] = x[i];"


def launch(x: mx.array, source: str = COPY, *, ensure_row_contiguous: bool = True) -> mx.array:
    kernel = metal_kernel("copy", ["x"], ["out"], source, "", ensure_row_contiguous)
    return kernel(
        inputs=[x],
        output_shapes=[x.shape],
        output_dtypes=[x.dtype],
        grid=(x.size, 1, 1),
        threadgroup=(32, 1, 1),
    )[0]


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kernel_is_refused(name: str) -> None:
    kind, case = WRONG[name]
    with pytest.raises(MetalError) as refused:
        case.run()
    assert refused.value.kind == kind, refused.value


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_kernel_gives_its_result(name: str) -> None:
    expected, case = RIGHT[name]
    np.testing.assert_array_equal(case.run().outputs[0], expected)


def test_every_kind_of_error_has_a_wrong_kernel() -> None:
    assert {kind for kind, _ in WRONG.values()} == set(get_args(Kind))


@pytest.mark.parametrize(
    ("source", "header", "place"),
    [
        ("\n\n" + I + "\nout[i + 1] = x[i];", "", "source:4"),
        (I + "out[i] = get(x, i);",
         "\n\ntemplate <class U> U get(const device U* p, uint i) { return p[i + 1]; }\n",
         "header:3"),
        ("\n" + I + "out[i] = softplus(x[i]);", "", "source:2"),
        ("\n\n" + I + "const T* p = x; out[i] = p[i];", "", "source:3"),
        ("\n" + I + "float4 f = float4(1.0f);\nint4 k = (int4)f; out[i] = T(k.x);", "", "source:3"),
        ("\n" + I + "\nout[i] = T(1 << (i + 40));", "", "source:3"),
        ("/* over\n two lines */\n" + I + "out[i] = T(l);", "", "source:3"),
    ],
)  # fmt: skip
def test_an_error_names_its_line(source: str, header: str, place: str) -> None:
    with pytest.raises(MetalError, match=place):
        Case(source, header).run()


def test_a_data_race_names_both_threads() -> None:
    with pytest.raises(MetalError, match=r"by thread_index 0, .*thread_index=1\]"):
        Case(I + "out[i / 2] = x[i];").run()


def test_bfloat16_rounds_as_mlx_does() -> None:
    values = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    values[:4] = np.inf, np.nan, 3.3895314e38, 0.0
    theirs = np.asarray(mx.array(values).astype(mx.bfloat16).astype(mx.float32))
    np.testing.assert_array_equal(from_bfloat16(to_bfloat16(values)), theirs)


FLOATS = [mx.float32, mx.float16, mx.bfloat16]
INTEGERS = [mx.bool_, mx.int8, mx.uint8, mx.int32, mx.uint32, mx.int64]


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
def test_arrays_of_every_dtype_pass_unchanged(dtype: mx.Dtype) -> None:
    x = mx.random.uniform(0, 100, (3, 33)).astype(dtype)
    assert mx.array_equal(launch(x), x)


def strided(x: mx.array) -> dict[str, mx.array]:
    return {
        "transposed": x.T,
        "every second": x[:, ::2],
        "a corner": x[1:, 3:],
        "backwards": x[::-1, ::-2],
        "broadcast": mx.broadcast_to(x[1:2], (5, 10)),
    }


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("which", strided(mx.zeros((4, 10))))
@pytest.mark.parametrize("ensure_row_contiguous", [True, False])
def test_strided_inputs_are_read_by_their_strides(
    which: str, dtype: mx.Dtype, ensure_row_contiguous: bool
) -> None:
    x = strided(mx.arange(40).reshape(4, 10).astype(dtype))[which]
    by_strides = I + "out[i] = x[elem_to_loc<int64_t>(i, x_shape, x_strides, x_ndim)];"
    out = launch(x, by_strides, ensure_row_contiguous=ensure_row_contiguous)
    assert mx.array_equal(out, x)


def test_an_input_that_is_not_copied_lies_as_it_is() -> None:
    x = mx.arange(12).reshape(3, 4).astype(mx.float32).T
    out = launch(x, ensure_row_contiguous=False)
    assert out.flatten().tolist() == list(range(12))


def test_what_lies_outside_of_a_slice_is_out_of_bounds() -> None:
    x = mx.arange(64).astype(mx.float32)[8:24]
    with pytest.raises(MetalError, match="out-of-bounds"):
        launch(x, I + "out[i] = x[i + 1];", ensure_row_contiguous=False)


def test_launches_are_recorded_with_the_copies_that_mlx_makes() -> None:
    x = mx.zeros((6, 8), dtype=mx.bfloat16)
    with record_launches() as launches, record_launches() as others:
        launch(x)
        launch(x.T)
    launch(x)
    assert launches == others
    assert [call.name for call in launches] == ["copy", "copy"]
    assert launches[0].inputs == launches[0].outputs == (("bfloat16", (6, 8)),)
    assert (launches[0].grid, launches[0].threadgroup) == ((48, 1, 1), (32, 1, 1))
    assert [call.copied for call in launches] == [(), ("x",)]


def test_launches_of_other_threads_are_recorded() -> None:
    x = mx.zeros(40)
    mx.eval(x)
    with record_launches() as launches:
        threads = [threading.Thread(target=launch, args=(x,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(launches) == 3


def test_options_hold_while_they_are_open() -> None:
    half = Case(I + "if (i < 512) out[i] = x[i];")
    with emulator_options(allow_unwritten=True, orders=("forward",)):
        half.run()
    with pytest.raises(MetalError, match="unwritten-output"):
        half.run()


def test_contraction_is_an_option() -> None:
    case = Case(I + "float a = float(x[i]) + 3.14159f; out[i] = a * a + 0.7f;", dtype=np.float32)
    a = X.astype(np.float32) + np.float32(3.14159)
    rounded_once = (a.astype(np.float64) ** 2 + np.float32(0.7)).astype(np.float32)
    np.testing.assert_array_equal(case.run().outputs[0], rounded_once)
    with emulator_options(contract="off"):
        np.testing.assert_array_equal(case.run().outputs[0], a * a + np.float32(0.7))
    assert (a * a + np.float32(0.7) != rounded_once).any()


def test_a_kernel_is_compiled_once() -> None:
    case = Case(L + "out[thread_position_in_grid.x] = T(l);")
    case.run()
    assert case.run().stats.compile_seconds == 0.0


def test_nothing_is_written_outside_of_the_cache_and_temporary_folders(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("cache", "temporary", "home", "here")}
    for folder in folders.values():
        folder.mkdir()
    root = Path(__file__).parent.parent
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",
        "XDG_CACHE_HOME": str(folders["cache"]),
        "TMPDIR": str(folders["temporary"]),
        "HOME": str(folders["home"]),
    }
    source = Path(__file__).parent / "metal_emulator"
    before = {path: path.stat().st_mtime for path in source.rglob("*")}
    program = "from tests.metal_emulator.cases import Case, I; Case(I + 'out[i] = x[i];').run()"
    subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=folders["here"], check=True
    )
    assert [path.name for path in folders["cache"].iterdir()] == ["metal-emulator"]
    assert (folders["cache"] / "metal-emulator").stat().st_mode & 0o777 == 0o700
    for name in ("temporary", "home", "here"):
        assert not list(folders[name].iterdir())
    assert {path: path.stat().st_mtime for path in source.rglob("*")} == before


def test_a_cache_that_others_can_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    program = "from tests.metal_emulator.toolchain import toolchain; toolchain()"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env=dict(os.environ, METAL_EMULATOR_CACHE=str(tmp_path)),
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert "can be written by others" in ran.stderr


def test_a_kernel_without_template_arguments_runs() -> None:
    out = run_kernel(
        "plain", ["x"], ["out"], COPY, inputs=[np.arange(9.0, dtype=np.float32)],
        grid=(9, 1, 1), threadgroup=(4, 1, 1), output_shapes=[(9,)], output_dtypes=[np.float32],
    ).outputs[0]  # fmt: skip
    assert out.tolist() == list(range(9))
