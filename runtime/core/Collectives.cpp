//===- Collectives.cpp - collectives along any dimension ------------------===//
// See Collectives.h.
//===----------------------------------------------------------------------===//
#include "moira/rt/Collectives.h"

#include "moira/rt/Box.h"
#include "moira/rt/OrderedReduce.h"
#include "moira/rt/SafeTensors.h"

#include <algorithm>
#include <cstring>

namespace moira::rt {
namespace {

/// A tensor cut into `ranks` slices along `dim`, each of which is contiguous in a staging buffer.
struct Slices {
  std::vector<int64_t> whole, slice;
  size_t dim;
  int64_t elements = 1; // of one slice
  Slices(std::span<const int64_t> shape, int64_t dim, int64_t ranks)
      : whole(shape.begin(), shape.end()), slice(whole), dim(dim) {
    slice[dim] /= ranks;
    for (int64_t d : slice)
      elements *= d;
  }
  /// True if slices already lie one after another in the tensor.
  bool contiguous() const {
    return std::all_of(whole.begin(), whole.begin() + dim, [](int64_t d) { return d == 1; });
  }
  Box inWhole(int64_t j) const {
    Box box = Box::all(whole);
    box.extent = slice;
    box.start[dim] = j * slice[dim];
    return box;
  }
};

char *reserve(std::vector<char> &buffer, size_t bytes) {
  if (buffer.size() < bytes)
    buffer.resize(bytes);
  return buffer.data();
}

/// Slices of `tensor` one after another: the tensor itself, or a packed copy in `buffer`.
const char *pack(const Slices &slices, const void *tensor, int64_t ranks, size_t elementBytes,
                 std::vector<char> &buffer) {
  if (slices.contiguous())
    return static_cast<const char *>(tensor);
  size_t block = slices.elements * elementBytes;
  char *packed = reserve(buffer, block * ranks);
  for (int64_t j = 0; j < ranks; ++j)
    copyBox(Box::all(slices.slice), packed + j * block, slices.inWhole(j), tensor, elementBytes);
  return packed;
}

void unpack(const Slices &slices, void *tensor, int64_t ranks, size_t elementBytes,
            const char *packed) {
  size_t block = slices.elements * elementBytes;
  for (int64_t j = 0; j < ranks; ++j)
    copyBox(slices.inWhole(j), tensor, Box::all(slices.slice), packed + j * block, elementBytes);
}

/// out[i] = blocks[0][i] op blocks[1][i] op …, as allReduce does it.
Status reduceBlocks(void *out, const char *blocks, size_t count, int64_t ranks, fb::DType type,
                    fb::Reduce op, const std::string &what) {
  if (type == fb::DType::f16) {
    std::vector<float> wide(count * size_t(ranks)), sum(count);
    convertRun(wide.data(), fb::DType::f32, blocks, type, wide.size());
    Status status = reduceBlocks(sum.data(), reinterpret_cast<const char *>(wide.data()), count,
                                 ranks, fb::DType::f32, op, what);
    convertRun(out, type, sum.data(), fb::DType::f32, count);
    return status;
  }
  size_t width = reducibleSize(type);
  if (width == 0)
    return Status(ErrorId::PlanShape,
                  format("%s: %s cannot be reduced", what.c_str(), nameOf(type)));
  std::vector<const void *> inputs;
  for (int64_t j = 0; j < ranks; ++j)
    inputs.push_back(blocks + size_t(j) * count * width);
  reduceInOrder(inputs, out, count, type, op);
  return {};
}

} // namespace

Expected<std::vector<int64_t>> collectiveShape(const CollectiveSpec &spec,
                                               std::span<const int64_t> shape, int64_t ranks) {
  std::vector<int64_t> out(shape.begin(), shape.end());
  auto inRange = [&](int64_t d) { return d >= 0 && d < static_cast<int64_t>(out.size()); };
  auto fail = [&](int64_t dim) {
    return Status(ErrorId::PlanShape,
                  format("dimension %lld of shape %s over %lld ranks", static_cast<long long>(dim),
                         shapeText(shape).c_str(), static_cast<long long>(ranks)));
  };
  switch (spec.kind) {
  case fb::CollectiveKind::all_reduce:
    return out;
  case fb::CollectiveKind::all_gather:
    if (!inRange(spec.dim))
      return fail(spec.dim);
    out[spec.dim] *= ranks;
    return out;
  case fb::CollectiveKind::reduce_scatter:
    if (!inRange(spec.dim) || out[spec.dim] % ranks != 0)
      return fail(spec.dim);
    out[spec.dim] /= ranks;
    return out;
  case fb::CollectiveKind::all_to_all:
    if (!inRange(spec.splitDim) || out[spec.splitDim] % ranks != 0)
      return fail(spec.splitDim);
    if (!inRange(spec.concatDim))
      return fail(spec.concatDim);
    out[spec.splitDim] /= ranks;
    out[spec.concatDim] *= ranks;
    return out;
  }
  return Status(ErrorId::PlanShape, "unknown collective");
}

Status runCollective(const CollectiveSpec &spec, const Group &group, Communicator &communicator,
                     const TensorRef &in, const TensorRef &out, Staging &staging,
                     const std::string &what) {
  const int64_t ranks = static_cast<int64_t>(group.members.size());
  const size_t size = bytesOf(in.dtype);
  switch (spec.kind) {
  case fb::CollectiveKind::all_reduce:
    return communicator.allReduce(group, in.data, out.data, in.elements(), in.dtype, spec.op, what);

  case fb::CollectiveKind::all_gather: {
    Slices slices(out.shape, spec.dim, ranks);
    size_t block = slices.elements * size;
    if (slices.contiguous())
      return communicator.allGather(group, in.data, out.data, block, what);
    char *received = reserve(staging.receive, block * ranks);
    if (Status s = communicator.allGather(group, in.data, received, block, what); !s)
      return s;
    unpack(slices, out.data, ranks, size, received);
    return {};
  }

  case fb::CollectiveKind::reduce_scatter: {
    Slices slices(in.shape, spec.dim, ranks);
    size_t block = slices.elements * size;
    const char *packed = pack(slices, in.data, ranks, size, staging.send);
    char *received = reserve(staging.receive, block * ranks);
    if (Status s = communicator.allToAll(group, packed, received, block, what); !s)
      return s;
    return reduceBlocks(out.data, received, slices.elements, ranks, in.dtype, spec.op, what);
  }

  case fb::CollectiveKind::all_to_all: {
    Slices send(in.shape, spec.splitDim, ranks), receive(out.shape, spec.concatDim, ranks);
    size_t block = send.elements * size;
    const char *packed = pack(send, in.data, ranks, size, staging.send);
    if (receive.contiguous())
      return communicator.allToAll(group, packed, out.data, block, what);
    char *received = reserve(staging.receive, block * ranks);
    if (Status s = communicator.allToAll(group, packed, received, block, what); !s)
      return s;
    unpack(receive, out.data, ranks, size, received);
    return {};
  }
  }
  return {};
}

} // namespace moira::rt
