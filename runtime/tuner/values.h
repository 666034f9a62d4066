// Elements of tensors in the host's memory, whatever their dtype and strides.
#pragma once

#include <vector>

#include "kerf/tensor.h"

namespace kerf::runtime {

/// In row-major order.
std::vector<double> values(const TensorRef& t);
/// NaN in every element; integers get 0x5a in every byte.
void poison(const TensorRef& t);
/// A copy of the elements, and the way back.
std::vector<std::byte> copy_of(const TensorRef& t);
void restore(const TensorRef& t, const std::vector<std::byte>& copy);
/// Norm of a - b over the norm of b, or over `least` where that is more. Infinite where one is NaN or infinite and the
/// other is not the same.
double relative_error(const std::vector<double>& a, const std::vector<double>& b, double least = 0);

}  // namespace kerf::runtime
