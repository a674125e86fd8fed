//===- PlanHostileTest.cpp --------------------------------------*- C++ -*-===//
// Shows that hostile plans with a right checksum are refused with the right id and a message that
// names the thing: their tables, memory, instructions, order and sections.
//===----------------------------------------------------------------------===//
#include "PlanHostile.h"

#include <climits>
#include <ctime>

using namespace moira::rt;
namespace fb = moira::fb;
using namespace moira::rt::test;

namespace {

using enum ErrorId;
constexpr int64_t kHuge = INT64_MAX;

TEST(HostilePlan, Tables) {
  expectRefused({
      {"axis of size 0", [](auto &p) { p.axes[1].size = 0; }, PlanStructure, "mesh axis 1: size 0"},
      {"2^32 ranks", [](auto &p) { p.axes = {{"dp", 1 << 16}, {"ep", 1 << 16}}; }, PlanStructure,
       "2^20 ranks"},
      {"axis named twice", [](auto &p) { p.axes[1].name = "dp"; }, PlanStructure,
       "\"dp\" is used twice"},
      {"nameless axis", [](auto &p) { p.axes[0].name = ""; }, PlanStructure, "mesh axis 0"},
      {"17 axes", [](auto &p) { p.axes.resize(17, {"x", 1}); }, PlanStructure, "17 mesh axes"},
      {"unknown call", [](auto &p) { p.calls[1] = "linearr"; }, PlanUnknownCall, "\"linearr\""},
      {"unprintable name", [](auto &p) { p.forward().arenas[0].name = "a\x1b[31m"; }, PlanStructure,
       "unprintable"},
      {"name of no text", [](auto &p) { p.forward().arenas[0].name = "a\xff"; }, PlanStructure,
       "unprintable"},
      {"no program", [](auto &p) { p.programs.clear(); }, PlanStructure, "no program"},
      {"two programs of one name", [](auto &p) { p.reference().name = "forward"; }, PlanStructure,
       "\"forward\": the name is used twice"},
      {"model of no type", [](auto &p) { p.dtype = fb::DType(99); }, PlanStructure, "dtype 99"},
      {"kernel in no section", [](auto &p) { p.kernels[0].section = 1; }, PlanIndex,
       "\"k_norm\": section 1 of 1"},
      {"PTX on the host", [](auto &p) { p.sections[0].kind = fb::SectionKind::ptx; }, PlanStructure,
       "not a host object"},
      {"section of no kind", [](auto &p) { p.sections[0].kind = fb::SectionKind(9); },
       PlanStructure, "section 0: unknown kind 9"},
      {"empty section", [](auto &p) { p.sections[0].bytes.clear(); }, PlanBounds, "section 0: 0"},
      {"kernel that is no symbol", [](auto &p) { p.kernels[0].name = "a b"; }, PlanStructure,
       "not a symbol"},
      {"kernel named twice", [](auto &p) { p.kernels[1].name = "k_norm"; }, PlanStructure,
       "\"k_norm\" is used twice"},
      {"shared kernel output", [](auto &p) { p.kernels[0].operands[1].rowwise = false; },
       PlanStructure, "operand 1: an output must be rowwise"},
      {"kernel operand of size -1", [](auto &p) { p.kernels[0].operands[0].inner = {-1, -16}; },
       PlanShape, "impossible shape"},
      {"wrong number of ranks", [](auto &p) { p.forward().ranks = 8; }, PlanStructure,
       "8 ranks, the mesh has 4"},
      {"reference on four ranks", [](auto &p) { p.reference().ranks = 4; }, PlanStructure,
       "4 ranks, a reference program has 1"},
      {"bound over its maximum", [](auto &p) { p.forward().boundInitial = 17; }, PlanStructure,
       "bound 17, largest 16"},
      {"no queue", [](auto &p) { p.forward().queues.clear(); }, PlanIndex, "queue 0 of 0"},
      {"nine queues", [](auto &p) { p.forward().queues.resize(9, "q"); }, PlanStructure,
       "9 queues"},
      {"2^32 events", [](auto &p) { p.forward().events = UINT32_MAX; }, PlanStructure,
       "4294967295 events"},
  });
}

TEST(HostilePlan, Memory) {
  expectRefused({
      {"arena of 2^64 bytes", [](auto &p) { p.forward().arenas[1].bytes = UINT64_MAX; }, PlanBounds,
       "arena 1"},
      {"arena that overflows at the largest bound",
       [](auto &p) { p.forward().arenas[2].bytesPerBound = UINT64_MAX / 16 + 2; }, PlanBounds,
       "arena 2"},
      {"growing state arena", [](auto &p) { p.forward().arenas[0].bytesPerBound = 64; },
       PlanStructure, "arena 0: grows with the bound"},
      {"arena of no role", [](auto &p) { p.forward().arenas[0].role = fb::ArenaRole(7); },
       PlanStructure, "role 7"},
      {"view in no arena", [](auto &p) { viewOf(p, view::x).arena = 3; }, PlanIndex,
       "view 2: arena 3 of 3"},
      {"view behind its arena", [](auto &p) { viewOf(p, view::half).offset = 1856; }, PlanBounds,
       "view 22"},
      {"view whose end overflows", [](auto &p) { viewOf(p, view::x).offset = UINT64_MAX - 63; },
       PlanBounds, "view 2"},
      {"view whose bytes overflow",
       [](auto &p) { viewOf(p, view::x).shape = {int64_t(1) << 31, int64_t(1) << 31, 4}; },
       PlanShape, "view 2: impossible shape"},
      {"view with a negative size", [](auto &p) { viewOf(p, view::x).shape = {-1, -4, 16}; },
       PlanShape, "view 2: impossible shape [-1, -4, 16]"},
      {"view with a zero", [](auto &p) { viewOf(p, view::x).shape = {0, 4, 16}; }, PlanShape,
       "view 2: impossible shape"},
      {"ragged view that fits only small bounds",
       [](auto &p) { p.forward().arenas[2] = {"ragged", fb::ArenaRole::ragged, 3072, 64}; },
       PlanBounds, "for bound 16"},
      {"ragged view that fits only the largest bound",
       [](auto &p) { viewOf(p, view::slots).offset = 768; }, PlanBounds, "for bound 1"},
      {"misaligned view", [](auto &p) { viewOf(p, view::half).offset = 1412; }, PlanStructure,
       "view 22: offset 1412"},
      {"view of no type", [](auto &p) { viewOf(p, view::x).dtype = fb::DType(7); }, PlanStructure,
       "view 2: unknown dtype 7"},
      {"bound in no dimension", [](auto &p) { viewOf(p, view::slots).boundDim = 4; }, PlanIndex,
       "bound_dim 4"},
      {"13 dimensions", [](auto &p) { viewOf(p, view::x).shape.assign(13, 1); }, PlanShape,
       "view 2: 13 dimensions"},
      {"ragged view without a bound",
       [](auto &p) { p.forward().boundInitial = p.forward().boundMax = 0; }, PlanStructure,
       "the program has none"},
      {"state in no arena", [](auto &p) { p.forward().states[0].arena = 9; }, PlanIndex,
       "\"embed\": arena 9 of 3"},
      {"state among activations",
       [](auto &p) { p.forward().states[3] = {"odd", {5}, {{{1}, 1}}, 1, 0, {"odd"}, false, {5}}; },
       PlanStructure, "not the state arena"},
      {"state behind its arena", [](auto &p) { p.forward().states[3].offset = 4608; }, PlanBounds,
       "\"odd\": 12 bytes at 4608"},
      {"state whose end overflows", [](auto &p) { p.forward().states[3].offset = UINT64_MAX - 63; },
       PlanBounds, "\"odd\""},
      {"states that overlap", [](auto &p) { p.forward().states[1].offset = 1984; }, PlanBounds,
       "states 0 and 1 overlap"},
      {"state that its axis does not divide",
       [](auto &p) { p.forward().states[3].dims[0].pad = 0; }, PlanShape,
       "5 elements with 0 of padding do not divide into 2"},
      {"state split twice over an axis",
       [](auto &p) { p.forward().states[0].dims = {{{1}}, {{1}}}; }, PlanStructure,
       "axis 1 is named twice"},
      {"state split over no axis", [](auto &p) { p.forward().states[0].dims[0].axes = {2}; },
       PlanIndex, "axis 2 of 2"},
      {"state with a sharding too few", [](auto &p) { p.forward().states[0].dims.pop_back(); },
       PlanShape, "2 dimensions with 1 shardings"},
      {"source of other elements", [](auto &p) { p.forward().states[1].diskShape = {4, 15}; },
       PlanShape, "[4, 15]"},
      {"source that permutes too few dimensions",
       [](auto &p) { p.forward().states[1].permute = {0}; }, PlanShape, "permutation of the 2"},
      {"source that permutes a dimension twice",
       [](auto &p) { p.forward().states[1].permute = {1, 1}; }, PlanShape, "permutation of the 2"},
      {"source that permutes a dimension beyond",
       [](auto &p) { p.forward().states[1].permute = {0, 2}; }, PlanShape, "permutation of the 2"},
      {"source of what holds nothing between steps",
       [](auto &p) { p.forward().states[1].transient = true; }, PlanStructure,
       "is transient and has a source"},
      {"source with half a slice", [](auto &p) { p.forward().states[1].slice = {0, 0}; }, PlanShape,
       "slice is not within"},
      {"source with a slice of no dimension",
       [](auto &p) { p.forward().states[1].slice = {2, 0, 100}; }, PlanShape,
       "slice is not within"},
      {"source with a slice past its end",
       [](auto &p) { p.forward().states[1].slice = {0, INT64_MAX - 1, INT64_MAX}; }, PlanShape,
       "slice is not within"},
      {"source with a slice of another tensor",
       [](auto &p) { p.forward().states[1].slice = {0, 1, 9}; }, PlanShape, "has not the elements"},
      {"source whose elements overflow",
       [](auto &p) { p.forward().states[1].diskShape = {INT64_MIN, 2}; }, PlanShape, "\"gate\""},
      {"source with names for another dimension",
       [](auto &p) { p.forward().states[2].sources = {"a.{e}", "b.{e}"}; }, PlanShape,
       "\"experts\": its source's 2 names per expert"},
      {"source per expert without {e}", [](auto &p) { p.forward().states[2].sources = {"a"}; },
       PlanShape, "\"a\" has no {e}"},
      {"input of another shape", [](auto &p) { p.forward().inputs[0].shape = {4, 8}; }, PlanShape,
       "input 0 \"input_ids\": a shard is [1, 8]"},
      {"input in no view", [](auto &p) { p.forward().inputs[0].view = 23; }, PlanIndex,
       "view 23 of 23"},
      {"input among the weights",
       [](auto &p) {
         p.forward().inputs.push_back({"t", fb::DType::f32, {32, 16}, {{}, {}}, view::table});
       },
       PlanStructure, "not in an activations arena"},
      {"trace of no view", [](auto &p) { p.forward().traces[0].view = 99; }, PlanIndex, "view 99"},
      {"trace named twice", [](auto &p) { p.forward().traces[1].name = "layers.0.ids"; },
       PlanStructure, "trace 1 \"layers.0.ids\": the name is used twice"},
      {"trace of another cut", [](auto &p) { p.forward().traces[0].dims[0].axes = {0}; }, PlanShape,
       "trace 0 \"layers.0.ids\": a shard is [2, 4, 2]"},
      {"trace over no axis", [](auto &p) { p.forward().traces[0].dims[0].axes = {7}; }, PlanIndex,
       "axis 7 of 2"},
      {"trace of a weight",
       [](auto &p) {
         p.forward().traces[0] = {"w", fb::DType::f32, {4, 16, 16}, {{{1}}, {}, {}}, view::w};
       },
       PlanStructure, "not in an activations arena"},
      {"trace that nothing writes",
       [](auto &p) {
         p.forward().traces[0] = {"x", fb::DType::i32, {4, 4}, {{{0, 1}}, {}}, view::ids};
       },
       PlanStructure, "0 instructions write view 0"},
      {"trace that two write",
       [](auto &p) {
         instr(p, at::norm).outputs[0] = view::x;
         p.forward().traces[0] = {"x", fb::DType::f32, {4, 4, 16}, {{{0, 1}}, {}, {}}, view::x};
       },
       PlanStructure, "2 instructions write view 2"},
      {"output of another type", [](auto &p) { p.forward().outputs[0].dtype = fb::DType::bf16; },
       PlanShape, "output 0 \"hidden\""},
      {"output whose source has other elements",
       [](auto &p) {
         p.forward().outputs[0].sources = {"a"};
         p.forward().outputs[0].diskShape = {4, 65};
       },
       PlanShape, "output 0 \"hidden\": its source's disk shape [4, 65]"},
      {"output with an impossible range", [](auto &p) { p.forward().inputs[0].minimum = 40; },
       PlanStructure, "minimum"},
  });
}

TEST(HostilePlan, Instructions) {
  expectRefused({
      {"instruction of no kind", [](auto &p) { instr(p, at::copy).kind = fb::InstrKind(8); },
       PlanStructure, "instruction 23: unknown kind 8"},
      {"no such view", [](auto &p) { instr(p, at::linear).inputs[0] = 23; }, PlanIndex,
       "view 23 of 23"},
      {"view 2^32-1", [](auto &p) { instr(p, at::linear).outputs[0] = UINT32_MAX; }, PlanIndex,
       "view 4294967295"},
      {"no such queue", [](auto &p) { instr(p, at::linear).queue = 2; }, PlanIndex, "queue 2 of 2"},
      {"no such location", [](auto &p) { instr(p, at::linear).location = 2; }, PlanIndex,
       "location 2 of 2"},
      {"no such call", [](auto &p) { instr(p, at::linear).target = 10; }, PlanIndex,
       "call 10 of 10"},
      {"no such kernel", [](auto &p) { instr(p, at::norm).target = 2; }, PlanIndex,
       "kernel 2 of 2"},
      {"no such event", [](auto &p) { instr(p, at::recordPacked).target = 4; }, PlanIndex,
       "event 4 of 4"},
      {"no such collective", [](auto &p) { instr(p, at::exchangeSlots).target = 4; }, PlanStructure,
       "unknown collective 4"},
      {"kernel over too many rows", [](auto &p) { param(instr(p, at::norm), "rows").i = 5; },
       PlanShape, "\"k_norm\""},
      {"kernel over 2^62 rows",
       [](auto &p) { param(instr(p, at::norm), "rows").i = int64_t(1) << 62; }, PlanShape,
       "rows 4611686018427387904"},
      {"kernel over -4 rows", [](auto &p) { param(instr(p, at::norm), "rows").i = -4; }, PlanShape,
       "rows -4"},
      {"kernel whose rows forget the bound",
       [](auto &p) { param(instr(p, at::scale), "rows_scale_bound").i = 0; }, PlanShape,
       "\"k_scale\""},
      {"kernel operand too few", [](auto &p) { instr(p, at::scale).inputs.pop_back(); }, PlanShape,
       "1 inputs and 1 outputs where 2 and 1"},
      {"kernel operand of another type",
       [](auto &p) { p.kernels[0].operands[0].dtype = fb::DType::bf16; }, PlanShape,
       "operand 0 is view 2"},
      {"shared operand of another size", [](auto &p) { p.kernels[1].operands[1].inner = {4, 15}; },
       PlanShape, "operand 1"},
      {"linear over another width", [](auto &p) { viewOf(p, view::gate).shape = {4, 8}; },
       PlanShape, "call linear: operand w"},
      {"linear contracting all", [](auto &p) { param(instr(p, at::linear), "contract").i = 4; },
       PlanShape, "call linear"},
      {"linear contracting -1", [](auto &p) { param(instr(p, at::linear), "contract").i = -1; },
       PlanShape, "contract is -1"},
      {"parameter missing", [](auto &p) { instr(p, at::linear).params.clear(); }, PlanShape,
       "parameter contract is missing"},
      {"parameter too many",
       [](auto &p) { instr(p, at::linear).params.push_back(integerParam("x", 1)); }, PlanShape,
       "parameter 1 is not one"},
      {"parameter of another kind",
       [](auto &p) { param(instr(p, at::linear), "contract").kind = fb::ParamKind::real; },
       PlanShape, "contract has kind"},
      {"parameter of no kind",
       [](auto &p) { param(instr(p, at::linear), "contract").kind = fb::ParamKind(9); },
       PlanStructure, "unknown kind 9"},
      {"offset over no axis",
       [](auto &p) { instr(p, at::embedding).params = {offsetParam("row_offset", 1, {7})}; },
       PlanIndex, "axis 7 of 2"},
      {"offset that overflows",
       [](auto &p) { instr(p, at::embedding).params = {offsetParam("row_offset", kHuge, {0, 1})}; },
       PlanShape, "2^40"},
      {"operand of another type", [](auto &p) { viewOf(p, view::logits).dtype = fb::DType::i32; },
       PlanShape, "operand out is i32, not f32"},
      {"experts that the slots do not divide",
       [](auto &p) { param(instr(p, at::pack), "experts").i = 5; }, PlanShape, "5 experts"},
      {"more experts than counts", [](auto &p) { param(instr(p, at::pack), "experts").i = 8; },
       PlanShape, "counts have 2 columns"},
      {"segments that do not divide the tokens",
       [](auto &p) {
         param(instr(p, at::pack), "segments").i = 3;
         viewOf(p, view::counts).shape = {1, 2, 6};
       },
       PlanShape, "4 tokens do not divide into 3 segments"},
      {"0 segments", [](auto &p) { param(instr(p, at::regroup), "segments").i = 0; }, PlanShape,
       "segments is 0"},
      {"regroup into too few rows", [](auto &p) { viewOf(p, view::rows).shape = {1, 16}; },
       PlanShape, "1*B rows are not 2 slots of 1*B"},
      {"regroup into rows that forget the bound",
       [](auto &p) {
         viewOf(p, view::rows).shape = {32, 16};
         viewOf(p, view::rows).boundDim = -1;
         p.forward().arenas[2].bytes = 4096;
       },
       PlanShape, "32 rows are not 2 slots of 1*B"},
      {"more choices than experts",
       [](auto &p) {
         viewOf(p, view::experts).shape = {1, 4, 5};
         viewOf(p, view::weights).shape = {1, 4, 5};
       },
       PlanShape, "k = 5 choices of 4 experts"},
      {"unknown score", [](auto &p) { param(instr(p, at::route), "score").s = "hash"; }, PlanShape,
       "score is none of softmax"},
      {"grouped product with a group too many",
       [](auto &p) { viewOf(p, view::groups).shape = {1, 3}; }, PlanShape,
       "call grouped_matmul: operand w has 2 where 3"},
      {"collective over no axis", [](auto &p) { instr(p, at::exchangeSlots).axes.clear(); },
       PlanStructure, "names no mesh axes"},
      {"collective over an axis twice", [](auto &p) { instr(p, at::exchangeSlots).axes = {1, 1}; },
       PlanStructure, "axis 1 is named twice"},
      {"collective over an unknown axis", [](auto &p) { instr(p, at::exchangeSlots).axes = {9}; },
       PlanIndex, "axis 9 of 2"},
      {"all_to_all over more ranks than parts",
       [](auto &p) { instr(p, at::exchangeSlots).axes = {0, 1}; }, PlanShape,
       "does not divide into 4 parts"},
      {"all_to_all along a missing dimension",
       [](auto &p) { param(instr(p, at::exchangeSlots), "concat_dim").i = 4; }, PlanIndex,
       "concat_dim is 4 of 4"},
      {"all_reduce by no operation", [](auto &p) { param(instr(p, at::reduceNeed), "op").i = 2; },
       PlanStructure, "unknown reduction 2"},
      {"all_gather into too small a view",
       [](auto &p) {
         InstrSpec &i = instr(p, at::exchangeCounts);
         i.target = uint32_t(fb::CollectiveKind::all_gather);
         i.params = {integerParam("dim", 0)};
       },
       PlanShape, "gives [2, 2, 2]"},
      {"copy from behind its input", [](auto &p) { param(instr(p, at::copy), "start").i = 9; },
       PlanBounds, "the box from 9"},
      {"copy from before its input", [](auto &p) { param(instr(p, at::copy), "start").i = -1; },
       PlanBounds, "the box from -1"},
      {"copy that leaves its input on the last rank",
       [](auto &p) { instr(p, at::copy).params.push_back(offsetParam("offset", 1, {0})); },
       PlanBounds, "the box from 8 + 0 … 1"},
      {"copy of another shape", [](auto &p) { param(instr(p, at::copy), "dim").i = 1; }, PlanShape,
       "no box along dimension 1"},
      {"write to the weights", [](auto &p) { instr(p, at::norm).outputs[0] = view::table; },
       PlanStructure, "writes to the state arena"},
      {"bound that nothing checks", [](auto &p) { erase(p, at::requireBound); }, PlanStructure,
       "no require_bound"},
      {"bound of another type", [](auto &p) { instr(p, at::requireBound).inputs[0] = view::x; },
       PlanShape, "not [1] of i32"},
      {"kernel in a reference program",
       [](auto &p) {
         p.reference().instrs[1] = instr(p, at::norm);
         p.reference().instrs[1].inputs = {2};
         p.reference().instrs[1].outputs = {4};
       },
       PlanStructure, "only library calls"},
      {"collective in a reference program",
       [](auto &p) { p.reference().instrs.push_back(instr(p, at::reduceNeed)); }, PlanIndex,
       "queue 1 of 1"},
      {"select past the last expert",
       [](auto &p) {
         p.reference().instrs[5].params[1] = offsetParam("expert_offset", 1, {});
         p.reference().instrs[5].params[0].i = 3;
       },
       PlanShape, "leaves the 3 experts"},
  });
}

TEST(HostilePlan, Order) {
  expectRefused({
      {"wait before the record",
       [](auto &p) { std::swap(instr(p, at::recordPacked), instr(p, at::waitPacked)); }, PlanOrder,
       "waits for event 0"},
      {"wait for what nothing records",
       [](auto &p) {
         p.forward().events = 5;
         instr(p, at::waitPacked).target = 4;
       },
       PlanOrder, "waits for event 4"},
      {"event recorded twice", [](auto &p) { instr(p, at::recordBack).target = 0; }, PlanOrder,
       "event 0 is recorded twice"},
      {"cycle of two queues",
       [](auto &p) {
         // compute waits for what comm records only after it has waited for compute
         std::swap(instr(p, at::waitPacked), instr(p, at::waitReceived));
         instr(p, at::waitReceived).target = 1;
         std::swap(instr(p, at::recordPacked), instr(p, at::waitPacked));
       },
       PlanOrder, "waits for event"},
      {"read while another queue writes", [](auto &p) { erase(p, at::waitReceived); }, PlanOrder,
       "another queue may still be writing: view 13"},
      {"write while another queue reads",
       [](auto &p) {
         // y, which the exchange queue reads instead of counts, is written again without a wait
         p.forward().views.push_back({1, 320, 0, fb::DType::i32, {1, 2, 2}});
         instr(p, at::exchangeCounts).inputs = {23};
         p.forward().instrs.insert(p.forward().instrs.begin() + at::recordReceived,
                                   instr(p, at::norm));
       },
       PlanOrder, "another queue may still be reading"},
      {"write while another queue writes",
       [](auto &p) {
         InstrSpec fill{fb::InstrKind::fill, 0, 1, {}, {view::x}, {realParam("value", 0)}, {}};
         p.forward().instrs.insert(p.forward().instrs.begin() + at::linear, fill);
       },
       PlanOrder, "writes bytes that another queue may still be"},
      {"read of what nothing has written", [](auto &p) { erase(p, at::zeroNeed); }, PlanOrder,
       "bytes that nothing has written: view 8"},
      {"read of weights that no state fills",
       [](auto &p) { p.forward().states.erase(p.forward().states.begin() + 1); }, PlanOrder,
       "bytes that nothing has written: view 4"},
      {"output that nothing has written", [](auto &p) { erase(p, at::copy); }, PlanOrder,
       "output 1 \"half\""},
      {"output over its input", [](auto &p) { viewOf(p, view::out).offset = 704; }, PlanOrder,
       "output 0 overlaps input"},
      {"two outputs in one place", [](auto &p) { viewOf(p, view::pos).offset = 832; }, PlanOrder,
       "outputs 1 and 2 overlap"},
      {"all_to_all in place",
       [](auto &p) { viewOf(p, view::counts2).offset = viewOf(p, view::counts).offset; }, PlanOrder,
       "output 0 overlaps input 0"},
      {"unordered collectives",
       [](auto &p) {
         p.forward().queues.push_back("comm2");
         instr(p, at::reduceNeed).queue = 2;
         InstrSpec wait{fb::InstrKind::wait, 0, 2};
         p.forward().instrs.insert(p.forward().instrs.begin() + at::reduceNeed, wait);
       },
       PlanOrder, "is not ordered after the collective of instruction 18"},
      {"views that cross as the bound grows",
       [](auto &p) {
         p.forward().arenas[2] = {"ragged", fb::ArenaRole::ragged, 65536, 768};
         p.forward().views.push_back({2, 1024, 0, fb::DType::f32, {4}});
       },
       PlanStructure, "as the bound grows"},
  });
}

TEST(HostilePlan, Sections) {
  // Fields that assemblePlanFile writes are changed in the file.
  struct {
    const char *name;
    flatbuffers::voffset_t field;
    uint64_t value;
    ErrorId id;
    const char *text;
  } cases[] = {
      {"section before the file", fb::Section::VT_OFFSET, 0, PlanStructure,
       "section 0: begins at 0"},
      {"section over the FlatBuffer", fb::Section::VT_OFFSET, 64, PlanStructure, "begins at 64"},
      {"section whose end overflows", fb::Section::VT_LENGTH, UINT64_MAX - 8, PlanBounds,
       "section 0"},
      {"section behind the file", fb::Section::VT_OFFSET, 1 << 20, PlanBounds, "1048576"},
      {"section of another checksum", fb::Section::VT_CRC32C, 7, PlanChecksum, "not 00000007"},
      {"bytes behind the section", fb::Section::VT_LENGTH, 20, PlanStructure, "follow the last"},
  };
  for (const auto &c : cases) {
    std::vector<uint8_t> bytes = expertPlan().build();
    fb::Plan *plan = flatbuffers::GetMutableRoot<fb::Plan>(bytes.data() + 40);
    auto *section = const_cast<flatbuffers::Table *>(
        reinterpret_cast<const flatbuffers::Table *>(plan->sections()->Get(0)));
    if (c.field == fb::Section::VT_CRC32C)
      section->SetField<uint32_t>(c.field, static_cast<uint32_t>(c.value));
    else
      section->SetField<uint64_t>(c.field, c.value);
    reseal(bytes);
    Expected<PlanFile> file = PlanFile::fromBytes(bytes);
    ASSERT_FALSE(file) << c.name;
    bool found = false;
    for (const Diagnostic &d : file.status().diagnostics())
      found |= d.id == c.id && d.message.find(c.text) != std::string::npos;
    EXPECT_TRUE(found) << c.name << "\n" << file.status().str();
  }
}

TEST(HostilePlan, ReportsEveryProblem) {
  PlanSpec plan = expertPlan();
  plan.calls[1] = "nothing";
  viewOf(plan, view::half).offset = 1 << 20;
  instr(plan, at::pack).queue = 5;
  plan.reference().ranks = 3;
  std::vector<uint8_t> bytes = plan.build();
  Expected<PlanFile> file = PlanFile::fromBytes(bytes);
  ASSERT_FALSE(file);
  EXPECT_EQ(file.status().diagnostics().size(), 4u) << file.status().str();
}

TEST(HostilePlan, SharedTablesDoNotMultiplyTheWork) {
  // A million references to one State whose Source has 100,000 names: 4.4 MB that a plain verifier
  // would walk for minutes.
  flatbuffers::FlatBufferBuilder b;
  auto name = b.CreateString("a");
  std::vector<flatbuffers::Offset<flatbuffers::String>> names(100000, name);
  auto source =
      fb::CreateSource(b, b.CreateVector(names), false, b.CreateVector(std::vector<int64_t>{1}));
  std::vector<flatbuffers::Offset<fb::DimSharding>> none;
  auto state = fb::CreateState(b, name, fb::DType::f32, b.CreateVector(std::vector<int64_t>{}),
                               b.CreateVector(none), 0, 0, source);
  auto states = b.CreateVector(std::vector<flatbuffers::Offset<fb::State>>(1000000, state));
  auto empty = [&]<typename T>() { return b.CreateVector(std::vector<flatbuffers::Offset<T>>()); };
  auto program = fb::CreateProgram(b, name, 1, false, empty.operator()<fb::Queue>(), 0,
                                   empty.operator()<fb::View>(), empty.operator()<fb::Instr>(),
                                   empty.operator()<fb::Input>(), empty.operator()<fb::Output>(),
                                   empty.operator()<fb::State>(), empty.operator()<fb::Arena>());
  b.Finish(fb::CreatePlan(b, name, name, empty.operator()<fb::Axis>(),
                          empty.operator()<flatbuffers::String>(),
                          empty.operator()<flatbuffers::String>(), empty.operator()<fb::Kernel>(),
                          empty.operator()<fb::Section>(),
                          b.CreateVector(std::vector<flatbuffers::Offset<fb::Program>>{program}),
                          fb::CreateModelInfo(b), states));
  std::vector<uint8_t> bytes =
      assemblePlanFile({b.GetBufferPointer(), b.GetBufferPointer() + b.GetSize()}, {});
  clock_t start = clock();
  Expected<PlanFile> file = PlanFile::fromBytes(bytes);
  double seconds = double(clock() - start) / CLOCKS_PER_SEC;
  ASSERT_FALSE(file);
  EXPECT_EQ(file.status().diagnostics()[0].id, PlanStructure);
  EXPECT_LT(seconds, 5);
}

} // namespace
