"""CUDA's own syntax, replaced where C++ cannot read it."""

from __future__ import annotations

import pytest

from tests.simt.plain_cuda import to_cxx

HEAD = '#include "cuda/launch.h"\n#include "cuda/ptx.cuh"\n#line 1\n'
SHARED = "static_cast<float4*>(simt::dynamic_shared_memory())"


@pytest.mark.parametrize(
    ("cuda", "cxx"),
    [
        ("kernel<<<n, 32>>>();", "simt::launch(kernel, n, 32, 0, nullptr);"),
        ("  kernel<<<n, 32, 8, stream>>>(p, q);", "  simt::launch(kernel, n, 32, 8, stream, p, q);"),
        (
            "a::kernel<Op<T>, 2><<<static_cast<unsigned>(f(n, 1)), k, 0, s>>>(p);",
            "simt::launch(a::kernel<Op<T>, 2>, static_cast<unsigned>(f(n, 1)), k, 0, s, p);",
        ),
        ("kernel<<<n,\n    32>>>(p);\n", "simt::launch(kernel, n, 32, 0, nullptr\n, p);\n"),
        ("extern __shared__ float4 all[];", f"float4* const all = {SHARED};"),
        ("extern __shared__ __align__(16) float4 all[];", f"float4* const all = {SHARED};"),
        ('asm volatile("cp.async.wait_all;" ::: "memory");', "simt::wait_for_all();"),
        (
            'asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(w.x), "r"(w.y) : "memory");',
            "flash_rwkv::cuda::ptx::st_global_b32((to), uint2{(w.x), (w.y)});",
        ),
        (
            'asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(high));',
            "(power) = flash_rwkv::cuda::ptx::ex2_approx_ftz_f32((high));",
        ),
        (
            'asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"\n'
            '::"r"(to), "l"(f(x, y)), "r"(n)\n: "memory");',
            "simt::copy_later(simt::shared_pointer((to)), (f(x, y)), 16, (n))\n\n;",
        ),
    ],
)
def test_replaced(cuda, cxx) -> None:
    assert to_cxx(cuda) == HEAD + cxx


def test_left_alone() -> None:
    source = "__shared__ int x[4];\nint y = a << 3 >> b;\n"
    assert to_cxx(source) == source


def test_unknown_assembly() -> None:
    with pytest.raises(ValueError, match=r"to be moved to cuda/ptx\.cuh: mov\.u32"):
        to_cxx('asm("mov.u32 %0, %laneid;" : "=r"(lane));')
