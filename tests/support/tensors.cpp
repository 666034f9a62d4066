#include "tests/support/tensors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>

namespace kerf::test {

namespace {

constexpr std::size_t guard = 128;  // bytes on both sides
constexpr std::byte untouched{0xa5};

template <class T>
T read(const std::byte* p) {
  T x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
template <class T>
void write(std::byte* p, T x) {
  std::memcpy(p, &x, sizeof x);
}

}  // namespace

std::uint64_t Random::bits() {  // splitmix64
  std::uint64_t z = state_ += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}
double Random::uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
double Random::normal() {
  const double radius = std::sqrt(-2 * std::log(1 - uniform()));
  return radius * std::cos(2 * std::numbers::pi * uniform());
}
std::int64_t Random::integer(std::int64_t low, std::int64_t high) {
  return low + static_cast<std::int64_t>(bits() % static_cast<std::uint64_t>(high - low + 1));
}

Array::Array(DType dtype, std::vector<std::int64_t> shape, std::int64_t padding)
    : dtype_(dtype), shape_(std::move(shape)), padding_(padding) {
  const std::int64_t rows = columns() ? size() / columns() : 0;
  memory_.assign(2 * guard + static_cast<std::size_t>(rows * (columns() + padding_) * size_of(dtype_)), untouched);
  poison();
}

std::int64_t Array::size() const {
  std::int64_t n = 1;
  for (std::int64_t s : shape_) n *= s;
  return n;
}
std::int64_t Array::columns() const { return shape_.empty() ? 1 : shape_.back(); }
std::size_t Array::offset(std::int64_t i) const {
  return guard + static_cast<std::size_t>((i / columns() * (columns() + padding_) + i % columns()) * size_of(dtype_));
}

double Array::operator[](std::int64_t i) const {
  const std::byte* p = memory_.data() + offset(i);
  switch (dtype_) {
    case DType::f32: return read<float>(p);
    case DType::bf16: return from_bf16(read<std::uint16_t>(p));
    case DType::f16: return from_f16(read<std::uint16_t>(p));
    case DType::i32: return read<std::int32_t>(p);
    case DType::i64: return static_cast<double>(read<std::int64_t>(p));
    case DType::boolean: return read<std::uint8_t>(p);
  }
  return 0;
}

void Array::set(std::int64_t i, double x) {
  std::byte* p = memory_.data() + offset(i);
  switch (dtype_) {
    case DType::f32: return write(p, static_cast<float>(x));
    case DType::bf16: return write(p, to_bf16(static_cast<float>(x)));
    case DType::f16: return write(p, to_f16(static_cast<float>(x)));
    case DType::i32: return write(p, static_cast<std::int32_t>(x));
    case DType::i64: return write(p, static_cast<std::int64_t>(x));
    case DType::boolean: return write(p, static_cast<std::uint8_t>(x));
  }
}

TensorRef Array::ref() {
  TensorRef t;
  t.data = memory_.data() + guard;
  t.dtype = dtype_;
  t.rank = static_cast<int>(shape_.size());
  std::int64_t stride = 1;
  for (int i = t.rank - 1; i >= 0; --i) {
    t.shape[i] = shape_[static_cast<std::size_t>(i)];
    t.strides[i] = stride;
    stride *= t.shape[i] + (i == t.rank - 1 ? padding_ : 0);
  }
  return t;
}

std::vector<double> Array::values() const {
  std::vector<double> v;
  for (std::int64_t i = 0; i < size(); ++i) v.push_back((*this)[i]);
  return v;
}

std::vector<std::byte> Array::bytes() const { return {memory_.begin() + guard, memory_.end() - guard}; }

void Array::poison() {
  for (std::int64_t i = 0; i < size(); ++i) {
    if (is_float(dtype_)) {
      set(i, std::numeric_limits<double>::quiet_NaN());
    } else if (dtype_ == DType::boolean) {
      set(i, 0x5a);
    } else {
      set(i, dtype_ == DType::i32 ? -0x1p31 : -0x1p63);
    }
  }
}

bool Array::surroundings_intact() const {
  std::vector<bool> element(memory_.size());
  for (std::int64_t i = 0; i < size(); ++i)
    for (std::int64_t b = 0; b < size_of(dtype_); ++b) element[offset(i) + static_cast<std::size_t>(b)] = true;
  for (std::size_t i = 0; i < memory_.size(); ++i)
    if (!element[i] && memory_[i] != untouched) return false;
  return true;
}

Array normal(Random& random, DType dtype, std::vector<std::int64_t> shape, double deviation, std::int64_t padding) {
  Array a(dtype, std::move(shape), padding);
  for (std::int64_t i = 0; i < a.size(); ++i) a.set(i, deviation * random.normal());
  return a;
}

Array integers(Random& random, DType dtype, std::vector<std::int64_t> shape, std::int64_t low, std::int64_t high) {
  Array a(dtype, std::move(shape));
  for (std::int64_t i = 0; i < a.size(); ++i) a.set(i, static_cast<double>(random.integer(low, high)));
  return a;
}

Error error(const Array& out, const std::vector<double>& ref) {
  const double none = std::numeric_limits<double>::infinity();
  if (static_cast<std::size_t>(out.size()) != ref.size()) return {none, none};
  const std::int64_t columns = out.shape().empty() ? 1 : out.shape().back();
  const auto relative = [](double difference, double size) {
    return difference == 0 ? 0 : std::sqrt(difference) / std::sqrt(size);
  };
  Error e;
  double difference = 0, size = 0;
  for (std::int64_t row = 0; row < out.size(); row += columns) {
    double row_difference = 0, row_size = 0;
    for (std::int64_t i = row; i < row + columns; ++i) {
      const double x = out[i], y = ref[static_cast<std::size_t>(i)];
      if (x == y || (std::isnan(x) && std::isnan(y))) {
        row_size += std::isfinite(y) ? y * y : 0;
      } else if (std::isfinite(x) && std::isfinite(y)) {
        row_difference += (x - y) * (x - y);
        row_size += y * y;
      } else {
        return {none, none};
      }
    }
    difference += row_difference;
    size += row_size;
    e.worst_row = std::max(e.worst_row, relative(row_difference, row_size));
  }
  e.norm = relative(difference, size);
  return e;
}

}  // namespace kerf::test
