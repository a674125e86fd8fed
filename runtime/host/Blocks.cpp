//===- Blocks.cpp - data movement around collectives ----------------------===//
// split_blocks and join_blocks: a cut along any dimension as a cut along dimension 0, and back.
// Pure copies of any type, so both flavors use them.
//===----------------------------------------------------------------------===//
#include "HostOps.h"
#include "moira/rt/CallRegistry.h"

#include <cstring>

namespace moira::rt::host::ref {

namespace {

char *bytesOf(const TensorRef &tensor) { return static_cast<char *>(tensor.data); }

/// Copies between `whole` [d0,..,blocks*s,..] and `parts` [blocks*d0,..,s,..], in the direction of
/// `toParts`.
Status moveBlocks(const Call &call, const TensorRef &whole, char *wholeData, char *partsData,
                  bool toParts) {
  int64_t blocks = call.params.integer("blocks"), dim = call.params.integer("dim");
  if (blocks < 1 || dim < 1 || dim >= static_cast<int64_t>(whole.shape.size()) ||
      whole.shape[dim] % blocks)
    return badCall(call, format("dimension %lld does not fall into %lld blocks", (long long)dim,
                                (long long)blocks));
  int64_t outer = product(whole.shape, 0, dim);
  int64_t run = product(whole.shape, dim, whole.shape.size()) / blocks * dtypeBytes(whole.dtype);
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t o = 0; o < outer; ++o) {
      char *inWhole = wholeData + (o * blocks + b) * run,
           *inParts = partsData + (b * outer + o) * run;
      std::memcpy(toParts ? inParts : inWhole, toParts ? inWhole : inParts, run);
    }
  return {};
}

} // namespace

template <typename S> Status split_blocks(const Call &call) {
  return moveBlocks(call, call.in[0], bytesOf(call.in[0]), bytesOf(call.out[0]), true);
}

template <typename S> Status join_blocks(const Call &call) {
  return moveBlocks(call, call.out[0], bytesOf(call.out[0]), bytesOf(call.in[0]), false);
}

#define INSTANTIATE(name)                                                                          \
  template Status name<float>(const Call &);                                                       \
  template Status name<double>(const Call &);                                                      \
  template Status name<Bf16>(const Call &);
INSTANTIATE(split_blocks)
INSTANTIATE(join_blocks)

} // namespace moira::rt::host::ref
