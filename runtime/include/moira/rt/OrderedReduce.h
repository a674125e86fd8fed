//===- OrderedReduce.h - element-wise reduction in a fixed order -*- C++ -*-===//
// The one definition of sum and max over ranks. Every communicator and reduce_scatter use it, and
// so give the same bits.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_ORDEREDREDUCE_H
#define MOIRA_RT_ORDEREDREDUCE_H

#include "moira/rt/Status.h"
#include "plan_generated.h"

#include <span>

namespace moira::rt {

/// Bytes of one element; 0 for a dtype that cannot be reduced (f16, i64, u8).
size_t reducibleSize(fb::DType dtype);

/// out[i] = in[0][i] op in[1][i] op …, as a tree: of an even number of inputs each half is a
/// subtree, an odd number is taken one after the other. So what 2^n ranks have in a sum lies in it
/// like what one rank has that holds theirs (SampleTree.h). bf16 is summed in f32 and rounded once,
/// to nearest even. i32 sums wrap. out may be one of the inputs.
void reduceInOrder(std::span<const void *const> inputs, void *out, size_t count, fb::DType dtype,
                   fb::Reduce op);

/// The elements [first, second) that member `self` of `members` reduces for the others. Cuts fall
/// on multiples of 16 elements.
std::pair<size_t, size_t> reduceChunk(size_t count, size_t members, size_t self);

} // namespace moira::rt

#endif // MOIRA_RT_ORDEREDREDUCE_H
