//===- Jitter.cpp - the noise of routers in training ------------------------===//
// `jitter`: every element times a factor of its own, drawn by counter.
//===----------------------------------------------------------------------===//
#include "moira/rt/Jitter.h"
#include "HostOps.h"
#include "moira/rt/HostThreads.h"

#include <algorithm>

namespace moira::rt::host::ref {

template <typename S> Status jitter(const Call &call) {
  const std::vector<int64_t> &shape = call.in[0].shape;
  int64_t columns = shape[1], width = shape[2];
  auto integer = [&](const char *name) { return call.params.integer(name); };
  double eps = call.params.real("eps");
  uint64_t seed = uint64_t(integer("seed"));
  uint32_t layer = uint32_t(integer("layer")), step = uint32_t(*call.input<int32_t>(1));
  int64_t part = call.in.size() > 2 ? *call.input<int32_t>(2) : 0;
  int64_t firstRow = part * integer("rows") + integer("row_offset");
  parallelFor(shape[0] * columns, [&](int64_t t) {
    int64_t token =
        (firstRow + t / columns) * integer("columns") + integer("column_offset") + t % columns;
    const S *x = call.input<S>(0) + t * width;
    S *out = call.output<S>(0) + t * width;
    for (int64_t i = 0; i < width; i += 4) {
      PhiloxWords draws = jitterDraws(seed, step, layer, uint32_t(token), uint32_t(i / 4));
      for (int64_t j = i; j < std::min(i + 4, width); ++j)
        out[j] = S(double(x[j]) * jitterFactor(draws.words[j - i], eps));
    }
  });
  return {};
}

template Status jitter<float>(const Call &);
template Status jitter<double>(const Call &);
template Status jitter<Bf16>(const Call &);

} // namespace moira::rt::host::ref
