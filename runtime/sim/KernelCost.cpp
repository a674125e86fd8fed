//===- KernelCost.cpp - how much an instruction computes and moves --------===//
// See KernelCost.h. Products and attention have operations by formula; everything else is its
// operands' bytes. Rows of experts count as routing that is balanced gives them (times the load
// that is asked for), not as the slots that could hold more; a kernel over rows of slots counts as
// it runs, over all.
//===----------------------------------------------------------------------===//
#include "KernelCost.h"

#include "moira/rt/CallRegistry.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

namespace moira::rt {
namespace {

/// Which operands are a product's three matrices: those of [t,K], [N,K] and [t,N] in any order. A
/// negative number is an output, counted from -1. `batch`: the operand whose dimension `dim` counts
/// the matrices of a batch, each with its own K and N.
struct ProductCall {
  std::array<int, 3> operands;
  int batch = 99, dim = 0;
};

const std::map<std::string, ProductCall, std::less<>> kProducts = {
    {"linear", {{0, 1, -1}}},
    {"linear_input_grad", {{0, 1, -1}}},
    {"linear_weight_grad", {{0, 1, -1}}},
    {"head_linear", {{0, 1, -1}, 1}},
    {"head_weight_grad", {{0, 1, -1}, -1}},
    {"grouped_matmul", {{0, 2, -1}, 2}},
    {"grouped_glu", {{0, 2, -1}, 2}},
    {"grouped_input_grad", {{0, 2, -1}, 2}},
    {"grouped_glu_grad", {{0, 2, -1}, 2}},
    {"grouped_weight_grad", {{0, 2, -1}, -1}},
};

/// Calls over rows of experts.
bool isOfExperts(const std::string &name) {
  static const std::set<std::string, std::less<>> others = {
      "select", "select_tokens", "pack", "regroup", "ungroup", "combine", "choice_dots"};
  return name.starts_with("grouped_") || others.contains(name);
}

/// Calls that read what they write.
bool isInPlace(const std::string &name) {
  static const std::set<std::string, std::less<>> names = {
      "adamw",      "expert_adamw", "sgd", "adafactor", "adafactor_vector",
      "accumulate", "balance_bias"};
  return names.contains(name);
}

const fb::Param *paramOf(const fb::Instr &instr, std::string_view name) {
  if (instr.params())
    for (const fb::Param *param : *instr.params())
      if (param->name()->string_view() == name)
        return param;
  return nullptr;
}

/// Distinct experts among `experts` that so many random choices meet.
double touched(double experts, double choices) {
  return experts * (1 - std::pow(1 - 1 / experts, choices));
}

} // namespace

double WorkReader::elementsOf(uint32_t index) const {
  const fb::View *view = program.views()->Get(index);
  double n = 1;
  for (int64_t size : *view->shape())
    n *= double(size);
  return view->bound_dim() >= 0 ? n * double(program.bound_initial()) : n;
}

double WorkReader::bytesOf(uint32_t index) const {
  return elementsOf(index) * dtypeBytes(program.views()->Get(index)->dtype());
}

/// Only the part of slots that rows fill.
double WorkReader::bytesAtLoad(uint32_t view, double load) const {
  return bytesOf(view) * (program.views()->Get(view)->bound_dim() >= 0 ? load : 1);
}

bool WorkReader::isOnHost(uint32_t view) const {
  fb::Space space = program.arenas()->Get(program.views()->Get(view)->arena())->space();
  return plan.target()->string_view() != "host" &&
         (space == fb::Space::host || space == fb::Space::pinned);
}

Work WorkReader::read(const fb::Instr &instr) {
  Work work;
  switch (instr.kind()) {
  case fb::InstrKind::call:
    return readCall(instr);
  case fb::InstrKind::launch:
    work.kind = Work::other;
    for (uint32_t view : *instr.inputs())
      work.bytes += bytesOf(view);
    for (uint32_t view : *instr.outputs())
      work.bytes += bytesOf(view);
    return work;
  case fb::InstrKind::copy: {
    uint32_t from = instr.inputs()->Get(0), to = instr.outputs()->Get(0);
    bool moves = isOnHost(from) != isOnHost(to);
    work.kind = moves ? Work::move : Work::other;
    work.bytes = bytesOf(to) * (moves ? 1 : 2);
    return work;
  }
  case fb::InstrKind::fill:
    work.kind = Work::other;
    work.bytes = bytesOf(instr.outputs()->Get(0));
    return work;
  case fb::InstrKind::collective:
  case fb::InstrKind::record:
  case fb::InstrKind::wait:
  case fb::InstrKind::require_bound:
    break;
  }
  return work;
}

/// A routing of t tokens, k choices each: with pack this rank gets as many rows as it sends, with
/// select those of the experts that it has.
void WorkReader::noteRows(const fb::Instr &instr, const std::string &name) {
  if (name != "pack" && name != "select" && name != "select_tokens")
    return;
  double rows = elementsOf(instr.outputs()->Get(2));
  if (name != "pack")
    rows *= elementsOf(instr.outputs()->Get(1)) / double(paramOf(instr, "experts")->i());
  rowsOfLayer[instr.layer()] = rows * expertLoad;
}

/// Rows of experts of a grouped product, all that there is room for.
double WorkReader::rowsOf(const fb::Instr &instr, const std::string &name) const {
  const fb::View *view = program.views()->Get(name == "grouped_glu" ? instr.outputs()->Get(0)
                                                                    : instr.inputs()->Get(0));
  return double(view->shape()->Get(0)) *
         (view->bound_dim() >= 0 ? double(program.bound_initial()) : 1);
}

double WorkReader::productFlops(const fb::Instr &instr, const std::string &name) const {
  if (name == "grouped_glu") { // of w [n,2,F..,K..], whatever the rows of x, which is gathered from
    const uint32_t w = instr.inputs()->Get(2);
    return 2 * rowsOf(instr, name) * elementsOf(w) /
           double(program.views()->Get(w)->shape()->Get(0));
  }
  const ProductCall &call = kProducts.find(name)->second;
  auto viewOf = [&](int operand) {
    return operand < 0 ? instr.outputs()->Get(uint32_t(-1 - operand))
                       : instr.inputs()->Get(uint32_t(operand));
  };
  double product = 1, batch = 1;
  for (int operand : call.operands)
    product *= elementsOf(viewOf(operand));
  if (call.batch != 99)
    batch = double(program.views()->Get(viewOf(call.batch))->shape()->Get(call.dim));
  // [t,K], [N,K] and [t,N] have (t N K)^2 elements together; in a batch of b matrices b times that.
  return 2 * std::sqrt(product / batch);
}

double WorkReader::attentionFlops(const fb::Instr &instr, bool gradient) const {
  uint32_t first = gradient ? 1 : 0; // behind dy
  auto shapeOf = [&](uint32_t operand) {
    return program.views()->Get(instr.inputs()->Get(first + operand))->shape();
  };
  const auto &q = *shapeOf(0), &k = *shapeOf(1), &v = *shapeOf(2);
  double queries = double(q[1]), keys = double(k[1]);
  double width = double(q[q.size() - 1]) + double(v[v.size() - 1]);
  const fb::Param *with = paramOf(instr, "with"), *causal = paramOf(instr, "causal"),
                  *window = paramOf(instr, "window");
  if (with && with->s() && with->s()->string_view().starts_with("q2"))
    width += double(shapeOf(3)->Get(3));
  double seen = keys;
  if ((!causal || causal->i() != 0) && queries > 1)
    seen /= 2; // in the mean over queries, and over ranks where the sequence is cut
  if (window && window->i() > 0)
    seen = std::min(seen, double(window->i()));
  double pairs = double(q[0]) * double(q[2]) * queries * seen;
  // Scores and their weighted values; backward the scores again and four more of this size.
  return 2 * pairs * width * (gradient ? 2.5 : 1);
}

double WorkReader::callBytes(const fb::Instr &instr, const std::string &name, double rows,
                             double load) const {
  double bytes = 0;
  if (name == "embedding" || name == "slot" || name == "write_rows") {
    // Of a table or a cache only the rows that are named.
    if (name != "write_rows")
      return 2 * bytesOf(instr.outputs()->Get(0));
    bytes = 2 * bytesOf(instr.inputs()->Get(0));
    if (instr.inputs()->size() > 2)
      bytes += 2 * bytesOf(instr.inputs()->Get(2));
    return bytes;
  }
  constexpr unsigned weights = 2; // of experts, where they are an input
  const auto product = kProducts.find(name);
  const bool grouped = product != kProducts.end() && product->second.batch == int(weights);
  if (instr.inputs())
    for (unsigned i = 0; i < instr.inputs()->size(); ++i) {
      uint32_t view = instr.inputs()->Get(i);
      double part = 1;
      if (grouped && i == weights) {
        double experts = double(program.views()->Get(view)->shape()->Get(0));
        part = touched(experts, rows) / experts;
      }
      bytes += bytesAtLoad(view, load) * part;
    }
  if (instr.outputs())
    for (uint32_t view : *instr.outputs())
      bytes += bytesAtLoad(view, load) * (isInPlace(name) ? 2 : 1);
  return bytes;
}

Work WorkReader::readCall(const fb::Instr &instr) {
  std::string name = plan.calls()->Get(instr.target())->str();
  noteRows(instr, name);
  Work work;
  work.kind = Work::other;
  double load = 1, rows = 0;
  if (isOfExperts(name)) {
    auto found = rowsOfLayer.find(instr.layer());
    rows = found == rowsOfLayer.end() ? 0 : found->second;
    // The operand over rows of experts has as many rows as there is room for.
    double room = 0;
    for (const auto *views : {instr.inputs(), instr.outputs()})
      for (uint32_t view : *views) {
        const fb::View *v = program.views()->Get(view);
        if (v->bound_dim() >= 0 && room == 0)
          room = elementsOf(view) / double(v->shape()->Get(v->shape()->size() - 1));
      }
    load = room > 0 && rows > 0 ? std::min(1.0, rows / room) : 1;
  }
  if (kProducts.contains(name)) {
    work.kind = Work::product;
    double rowsThere = 1;
    if (name.starts_with("grouped_"))
      rowsThere = rowsOf(instr, name);
    work.flops = productFlops(instr, name);
    if (rowsThere > 1 && rows > 0)
      work.flops *= std::min(1.0, rows / rowsThere);
    // Where one of the matrices is in bf16, devices round the other one.
    for (int operand : kProducts.find(name)->second.operands)
      if (operand >= 0)
        work.narrow |= program.views()->Get(instr.inputs()->Get(uint32_t(operand)))->dtype() ==
                       fb::DType::bf16;
  } else if (name == "attention" || name == "attention_grad") {
    work.kind = Work::attention;
    work.flops = attentionFlops(instr, name == "attention_grad");
    uint32_t q = instr.inputs()->Get(name == "attention" ? 0 : 1);
    work.narrow = program.views()->Get(q)->dtype() == fb::DType::bf16;
  }
  work.bytes = callBytes(instr, name, rows, load);
  if (instr.outputs() && instr.outputs()->size())
    work.onHost = isOnHost(instr.outputs()->Get(0));
  return work;
}

} // namespace moira::rt
