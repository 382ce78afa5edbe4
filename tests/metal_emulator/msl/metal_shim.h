// A stand-in for <metal_stdlib> with which a stock clang (>= 18) checks and compiles MSL kernels.
// What is not declared here does not compile: that is intended. Include nothing else.
#pragma once
#pragma GCC poison double goto asm throw try catch new delete virtual dynamic_cast typeid
#pragma GCC poison thread_local

// clang checks these address spaces in plain C++; on x86-64 they cost nothing in the code.
#define device __attribute__((opencl_global))
#define constant __attribute__((opencl_constant))
#define threadgroup __attribute__((opencl_local))
#define thread
#define kernel
#define METAL_FUNC inline __attribute__((always_inline))
#define __METAL_VERSION__ 320
// The emulator's own code: its accesses are not reported to the checker.
#define EMU_UNCHECKED __attribute__((no_sanitize("thread", "undefined"), noinline))

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef uchar uint8_t;
typedef ushort uint16_t;
typedef uint uint32_t;
typedef ulong uint64_t;
typedef __SIZE_TYPE__ size_t;
typedef __PTRDIFF_TYPE__ ptrdiff_t;
typedef _Float16 half;
typedef __bf16 bfloat;

// Where a call stands in the kernel: both numbers tell two barriers on one line apart.
#define EMU_SITE (__builtin_LINE() << 12 | (__builtin_COLUMN() & 4095))

extern "C" {
void emu_barrier(unsigned flags, int site);
void emu_simd_barrier(unsigned flags, int site);
const unsigned char* emu_simd_gather(const void* value, unsigned bytes, int operation, int site,
                                     unsigned* active, unsigned* lane);
void* emu_threadgroup_memory(unsigned long bytes, unsigned long align, int id, int line);
void emu_atomic(const void* address, unsigned bytes);
void emu_atomic_store(const void* address, unsigned bytes);
}

#include "metal_types.h"
#include "metal_math.h"
#include "metal_simdgroup.h"
#include "metal_atomic.h"

using namespace metal;

#include "mlx_utils.h"

// MSL's float4(a, b, ...): only a name followed by '(' is touched, a plain 'float4' is not.
#define char2(...) metal::emu_make_vec<char, 2>(__VA_ARGS__)
#define char3(...) metal::emu_make_vec<char, 3>(__VA_ARGS__)
#define char4(...) metal::emu_make_vec<char, 4>(__VA_ARGS__)
#define uchar2(...) metal::emu_make_vec<uchar, 2>(__VA_ARGS__)
#define uchar3(...) metal::emu_make_vec<uchar, 3>(__VA_ARGS__)
#define uchar4(...) metal::emu_make_vec<uchar, 4>(__VA_ARGS__)
#define short2(...) metal::emu_make_vec<short, 2>(__VA_ARGS__)
#define short3(...) metal::emu_make_vec<short, 3>(__VA_ARGS__)
#define short4(...) metal::emu_make_vec<short, 4>(__VA_ARGS__)
#define ushort2(...) metal::emu_make_vec<ushort, 2>(__VA_ARGS__)
#define ushort3(...) metal::emu_make_vec<ushort, 3>(__VA_ARGS__)
#define ushort4(...) metal::emu_make_vec<ushort, 4>(__VA_ARGS__)
#define int2(...) metal::emu_make_vec<int, 2>(__VA_ARGS__)
#define int3(...) metal::emu_make_vec<int, 3>(__VA_ARGS__)
#define int4(...) metal::emu_make_vec<int, 4>(__VA_ARGS__)
#define uint2(...) metal::emu_make_vec<uint, 2>(__VA_ARGS__)
#define uint3(...) metal::emu_make_vec<uint, 3>(__VA_ARGS__)
#define uint4(...) metal::emu_make_vec<uint, 4>(__VA_ARGS__)
#define long2(...) metal::emu_make_vec<long, 2>(__VA_ARGS__)
#define long3(...) metal::emu_make_vec<long, 3>(__VA_ARGS__)
#define long4(...) metal::emu_make_vec<long, 4>(__VA_ARGS__)
#define ulong2(...) metal::emu_make_vec<ulong, 2>(__VA_ARGS__)
#define ulong3(...) metal::emu_make_vec<ulong, 3>(__VA_ARGS__)
#define ulong4(...) metal::emu_make_vec<ulong, 4>(__VA_ARGS__)
#define half2(...) metal::emu_make_vec<half, 2>(__VA_ARGS__)
#define half3(...) metal::emu_make_vec<half, 3>(__VA_ARGS__)
#define half4(...) metal::emu_make_vec<half, 4>(__VA_ARGS__)
#define bfloat2(...) metal::emu_make_vec<bfloat, 2>(__VA_ARGS__)
#define bfloat3(...) metal::emu_make_vec<bfloat, 3>(__VA_ARGS__)
#define bfloat4(...) metal::emu_make_vec<bfloat, 4>(__VA_ARGS__)
#define float2(...) metal::emu_make_vec<float, 2>(__VA_ARGS__)
#define float3(...) metal::emu_make_vec<float, 3>(__VA_ARGS__)
#define float4(...) metal::emu_make_vec<float, 4>(__VA_ARGS__)
#define bool2(...) metal::emu_make_vec<bool, 2>(__VA_ARGS__)
#define bool3(...) metal::emu_make_vec<bool, 3>(__VA_ARGS__)
#define bool4(...) metal::emu_make_vec<bool, 4>(__VA_ARGS__)
