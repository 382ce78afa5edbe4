// What MLX puts before every kernel and kernels commonly use: mlx/backend/metal/kernels/utils.h.
#pragma once

typedef half float16_t;
typedef bfloat bfloat16_t;

// Where element `elem` of a strided array lies, in elements.
template <typename IdxT = int64_t>
METAL_FUNC IdxT elem_to_loc(IdxT elem, constant const int* shape, constant const int64_t* strides,
                            int ndim) {
  IdxT loc = 0;
  for (int i = ndim - 1; i >= 0 && elem > 0; --i) {
    loc += (elem % shape[i]) * IdxT(strides[i]);
    elem /= shape[i];
  }
  return loc;
}

template <typename T>
METAL_FUNC T ceildiv(T a, T b) {
  return (a + b - 1) / b;
}
