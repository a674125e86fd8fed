//===- CallChecks.cpp - the contract of every library call ------*- C++ -*-===//
// checkCall: unification (CallCheck.cpp), and one function a call for what names alone do not say.
// What must hold for memory safety is checked here; the values inside index tensors are the
// device's to check when it runs.
//===----------------------------------------------------------------------===//
#include "CallCheck.h"

#include <algorithm>
#include <cmath>

namespace moira::rt {

namespace {

//===----------------------------------------------------------------------===//
// One function a call, named check_<call>
//===----------------------------------------------------------------------===//

/// Results have the type of what they are made of, or the wider one that sums have.
void checkRounding(CallCheck &c, fb::DType from, size_t output = 0) {
  fb::DType to = c.outputType(output);
  if (to != from && dtypeBytes(to) < dtypeBytes(from))
    c.fail(format("the result is %s, narrower than its operands' %s", dtypeText(to).c_str(),
                  dtypeText(from).c_str()));
}

void check_embedding(CallCheck &c) {
  checkRounding(c, c.inputType(1));
  c.fixed("v");
  if (c.offset("row_offset").least < 0)
    c.fail("row_offset is negative on some rank");
}

void check_lookup(CallCheck &c) { c.fixed("v"); }

/// Weight i (from 1) and its result.
void checkProduct(CallCheck &c, size_t i) {
  if (c.inputType(0) != c.inputType(i))
    c.fail(format("x is %s, w is %s; they have one type", dtypeText(c.inputType(0)).c_str(),
                  dtypeText(c.inputType(i)).c_str()));
  checkRounding(c, c.inputType(0), i - 1);
}

void check_linear(CallCheck &c) { checkProduct(c, 1); }

void check_linears(CallCheck &c) {
  size_t weights = c.inputCount() - 1;
  if (c.outputCount() != weights)
    return c.fail(format("%zu weights, %zu results", weights, c.outputCount()));
  for (size_t i = 1; i <= weights; ++i)
    checkProduct(c, i);
}

void check_positions(CallCheck &c) {
  OffsetRange start = c.offset("start");
  if (start.least < 0 || start.most + c.fixed("S") - 1 > kInt32Max)
    c.fail("positions leave the range of i32 on some rank");
}

void check_token_positions(CallCheck &c) {
  OffsetRange start = c.offset("start");
  int64_t columns = c.fixed("U");
  c.fixed("B");
  if (start.least < 0 || start.most + c.fixed("S") > columns)
    c.fail(format("start + %lld columns leaves the %lld of ids on some rank",
                  static_cast<long long>(c.dim("S").scale), static_cast<long long>(columns)));
  c.atLeast("pad", 0);
  if (Wide(c.integer("pad")) + columns > kInt32Max)
    c.fail("positions leave the range of i32");
}

void check_sinusoid(CallCheck &c) {
  c.fixedRun("t");
  if (c.fixed("D") < 4)
    c.fail(format("rows of %lld, under 4", static_cast<long long>(c.dim("D").scale)));
  if (c.integer("offset") < -kInt32Max || c.integer("offset") > kInt32Max)
    c.fail("offset leaves the range of i32");
}

} // namespace

void checkRelativeBias(CallCheck &c) {
  int64_t buckets = c.fixed("N"), parts = c.integer("bidirectional") ? 4 : 2;
  c.fixed("H");
  c.fixed("Q");
  c.fixed("K");
  if (buckets < parts || buckets % parts != 0)
    c.fail(format("%lld buckets do not divide by %lld", static_cast<long long>(buckets),
                  static_cast<long long>(parts)));
  else if (c.integer("max_distance") <= buckets / parts)
    c.fail(format("max_distance is %lld, not over the %lld exact buckets",
                  static_cast<long long>(c.integer("max_distance")),
                  static_cast<long long>(buckets / parts)));
}

namespace {

void check_relative_bias(CallCheck &c) { checkRelativeBias(c); }

void check_rope_table(CallCheck &c) {
  std::span<const double> frequencies = c.list("frequencies");
  if (c.fixed("r") != static_cast<int64_t>(frequencies.size()))
    c.fail(format("cos and sin have %lld columns for %zu frequencies",
                  static_cast<long long>(c.dim("r").scale), frequencies.size()));
  for (double frequency : frequencies)
    if (std::isinf(frequency))
      return c.fail("frequencies holds an infinite one");
  if (!(c.real("factor") > 0) || std::isinf(c.real("factor")))
    c.fail("factor is not a positive number");
}

void check_head_linear(CallCheck &c) {
  checkPerSample(c);
  int64_t transposed = c.integer("transposed");
  if (transposed != 0 && transposed != 1)
    return c.fail(format("transposed is %lld, not 0 or 1", static_cast<long long>(transposed)));
  int64_t rows = c.fixed("P"), columns = c.fixed("Q");
  if (c.fixed("N") != (transposed ? columns : rows) ||
      c.fixed("K") != (transposed ? rows : columns))
    c.fail(format("a head's matrix is %lld x %lld, x has %lld columns and out %lld",
                  static_cast<long long>(rows), static_cast<long long>(columns),
                  static_cast<long long>(c.dim("K").scale),
                  static_cast<long long>(c.dim("N").scale)));
}

} // namespace

void checkAttention(CallCheck &c) {
  int64_t heads = c.fixed("H"), kvHeads = c.fixedRun("G");
  if (c.run("G").size() > 1)
    return c.fail("k and v have more than four dimensions");
  int64_t allHeads = c.integer("q_heads"), allKvHeads = c.integer("kv_heads");
  c.atLeast("window", 0);
  if (int64_t causal = c.integerOr("causal", 1); causal != 0 && causal != 1)
    c.fail(format("causal is %lld, not 0 or 1", static_cast<long long>(causal)));
  else if (!causal && c.integer("window") > 0)
    c.fail("a window needs causal attention");
  if (c.hasInput("q2") != c.hasInput("k2"))
    c.fail("q2 and k2 are given together or not at all");
  if (allHeads < 1 || allKvHeads < 1 || allHeads > kInt32Max || allKvHeads > kInt32Max) {
    c.fail("q_heads and kv_heads must be 1 to 2^31-1");
    return;
  }
  OffsetRange q = c.offset("head_offset"), kv = c.offset("kv_offset");
  if (q.least < 0 || q.most + heads > allHeads) {
    c.fail(format("head_offset + %lld heads leaves the %lld q_heads on some rank",
                  static_cast<long long>(heads), static_cast<long long>(allHeads)));
    return;
  }
  // Head h of a rank reads floor((q + h) * kv_heads / q_heads) - kv, which must lie in [0, Hk).
  // For integers that is (q + 0) * kv_heads >= kv * q_heads and (q + H - 1) * kv_heads <
  // (kv + Hk) * q_heads. Both sides are sums over the axes of the rank's coordinates, so the
  // extremes are found axis by axis.
  Wide least = 0, most = 0;
  for (size_t axis = 0; axis < q.perAxis.size(); ++axis) {
    Wide slope = Wide(q.perAxis[axis]) * allKvHeads - Wide(kv.perAxis[axis]) * allHeads;
    (slope < 0 ? least : most) += slope;
  }
  if (least < 0)
    c.fail("kv_offset passes the kv head that some query head reads on some rank");
  if (most + Wide(heads - 1) * allKvHeads >= Wide(kvHeads) * allHeads)
    c.fail(format("some query head reads past the %lld kv heads of its rank",
                  static_cast<long long>(kvHeads)));
}

void checkPerSample(CallCheck &c, bool tokens) {
  int64_t perSample = c.integerOr("per_sample", 0);
  if (perSample != 0 && perSample != 1)
    c.fail(format("per_sample is %lld, not 0 or 1", static_cast<long long>(perSample)));
  else if (perSample == 1 && tokens && c.run("t").empty())
    c.fail("per_sample is 1 for tokens without a first dimension");
}

void checkEps(CallCheck &c) {
  if (!(c.real("eps") >= 0) || std::isinf(c.real("eps")))
    c.fail("eps is not a number >= 0");
}

namespace {

void check_attention(CallCheck &c) { checkAttention(c); }

void check_rms_norm(CallCheck &c) {
  c.fixedRun("N");
  checkEps(c);
}

void check_layer_norm(CallCheck &c) {
  c.fixedRun("N");
  checkEps(c);
}

void check_sum_squares(CallCheck &c) { c.fixedRun("N"); }

void check_rms_apply(CallCheck &c) {
  c.fixedRun("N");
  c.atLeast("count", 1);
  checkEps(c);
}

void check_add(CallCheck &) {}

void check_clamp(CallCheck &c) {
  if (c.real("min") > c.real("max"))
    c.fail("min is over max");
}

void check_scale(CallCheck &c) {
  if (std::isinf(c.real("factor")))
    c.fail("factor is infinite");
}

void check_act(CallCheck &c) { c.oneOf("activation", {"silu", "gelu", "gelu_tanh", "relu"}); }

} // namespace

void checkActivation(CallCheck &c) {
  c.oneOf("activation", {"silu", "gelu", "gelu_tanh", "relu"});
  if (!(c.realOr("limit", 1) > 0))
    c.fail("limit is not positive");
  if (std::isinf(c.realOr("alpha", 1)) || std::isinf(c.realOr("up_shift", 0)))
    c.fail("alpha or up_shift is infinite");
  if (c.has("alpha") && c.text("activation") != "silu")
    c.fail("alpha is for silu only");
}

namespace {

void check_glu(CallCheck &c) { checkActivation(c); }

void check_sigmoid_gate(CallCheck &) {}

void check_rope(CallCheck &c) {
  if (int64_t value = c.integerOr("interleaved", 0); value != 0 && value != 1)
    c.fail(format("interleaved is %lld, not 0 or 1", static_cast<long long>(value)));
  if (Wide(c.fixed("r")) * 2 > c.fixed("d"))
    c.fail(format("%lld rotated pairs do not fit a head of %lld",
                  static_cast<long long>(c.dim("r").scale),
                  static_cast<long long>(c.dim("d").scale)));
}

void checkNotNegative(CallCheck &c, const char *name) {
  if (!(c.realOr(name, 0) >= 0) || std::isinf(c.realOr(name, 0)))
    c.fail(std::string(name) + " is not a number >= 0");
}

} // namespace

void checkRenormReals(CallCheck &c) {
  checkNotNegative(c, "renorm_epsilon");
  checkNotNegative(c, "renorm_clamp_min");
}

std::pair<int64_t, int64_t> checkGateSizes(CallCheck &c) {
  int64_t k = c.fixed("k"), experts = c.fixed("E");
  if (k > experts)
    c.fail(format("k = %lld choices of %lld experts", static_cast<long long>(k),
                  static_cast<long long>(experts)));
  c.fitsInt32({experts}, "experts");
  return {k, experts};
}

namespace {

/// The optional fields of a gate, alone and together.
void checkGate(CallCheck &c, int64_t experts, int64_t k) {
  if (c.has("group_score"))
    c.oneOf("group_score", {"max", "top2_sum"});
  checkRenormReals(c);
  checkNotNegative(c, "jitter_eps");
  int64_t groups = c.integerOr("groups", 1), keep = c.integerOr("group_keep", 1);
  if (groups < 1 || groups > experts || experts % groups != 0)
    c.fail(format("%lld groups do not divide %lld experts", static_cast<long long>(groups),
                  static_cast<long long>(experts)));
  else if (keep < 1 || keep > groups || Wide(keep) * (experts / groups) < k)
    c.fail(format("%lld of %lld groups do not hold %lld choices of %lld experts",
                  static_cast<long long>(keep), static_cast<long long>(groups),
                  static_cast<long long>(k), static_cast<long long>(experts)));
  else if (groups > 1 && groups == experts && c.text("group_score") == "top2_sum")
    c.fail("groups of one expert have no top-2 sum");
  if (c.text("score") == "sparsemixer" && (c.text("order") != "score_topk" || groups != 1 ||
                                           c.text("renorm") != "none" || c.hasInput("bias")))
    c.fail("a sparsemixer has order score_topk, one group, renorm none and no bias");
}

/// What draws by the numbers of the tokens [B,S] in the whole batch.
static void checkDraws(CallCheck &c) {
  if (c.integer("seed") < 0)
    c.fail("seed is negative");
  if (c.integer("layer") < 0 || c.integer("layer") > kInt32Max)
    c.fail("layer must be 0 to 2^31-1");
  for (auto [whole, dim, offset] :
       {std::tuple("rows", "B", "row_offset"), std::tuple("columns", "S", "column_offset")}) {
    OffsetRange first = c.offset(offset);
    if (first.least < 0 || Wide(first.most) + c.fixed(dim) > c.integer(whole))
      c.fail(
          format("the shard leaves the %lld %s on some rank", (long long)c.integer(whole), whole));
  }
  if (Wide(c.integer("rows")) * c.integer("columns") > kInt32Max)
    c.fail("rows times columns are more than an i32 can count");
}

void check_jitter(CallCheck &c) {
  if (double eps = c.real("eps"); !(eps > 0 && eps <= 1))
    c.fail("eps is not above 0 and at most 1");
  checkDraws(c);
}

void check_sampled_route(CallCheck &c) {
  checkGateSizes(c);
  if (double eps = c.real("jitter_eps"); !(eps >= 0) || std::isinf(eps))
    c.fail("jitter_eps is negative or infinite");
  if (std::isinf(c.real("scale")))
    c.fail("scale is infinite");
  checkDraws(c);
}

void check_route(CallCheck &c) {
  auto [k, experts] = checkGateSizes(c);
  c.oneOf("score", {"softmax", "sigmoid", "sqrt_softplus", "sparsemixer"});
  c.oneOf("order", {"score_topk", "topk_score"});
  c.oneOf("renorm", {"none", "sum"});
  if (std::isinf(c.real("scale")))
    c.fail("scale is infinite");
  checkGate(c, experts, k);
}

void check_route_to(CallCheck &c) {
  c.fixed("k");
  c.fitsInt32({c.fixed("E")}, "experts");
  c.oneOf("score", {"softmax", "sigmoid", "sqrt_softplus"});
  c.oneOf("order", {"score_topk", "topk_score"});
  c.oneOf("renorm", {"none", "sum"});
  if (std::isinf(c.real("scale")))
    c.fail("scale is infinite");
  checkRenormReals(c);
}

void check_redirect(CallCheck &c) {
  c.fixed("k");
  for (const char *name : {"first", "rest"})
    if (c.integer(name) < 0 || c.integer(name) > kInt32Max)
      c.fail(std::string(name) + " is no expert");
}

void check_limit(CallCheck &c) {
  int64_t tokens = c.fixedRun("t"), k = c.fixed("k"), domains = c.integer("domains");
  if (Wide(tokens) * k > kInt32Max)
    c.fail("tokens times k are more than an i32 can count");
  if (c.integer("experts") < 1 || c.integer("experts") > kInt32Max)
    c.fail("experts must be 1 to 2^31-1");
  c.atLeast("capacity", 0);
  if (domains < 1 || tokens % domains != 0)
    c.fail(format("%lld tokens do not divide into %lld domains", static_cast<long long>(tokens),
                  static_cast<long long>(domains)));
  c.oneOf("policy", {"position", "probs", "random", "priority"});
  c.oneOf("order", {"token_major", "choice_major"});
  c.oneOf("renorm", {"none", "before", "after"});
  checkRenormReals(c);
  if (std::isinf(c.real("scale")))
    c.fail("scale is infinite");
  if (c.integer("layer") < 0 || c.integer("layer") > kInt32Max)
    c.fail("layer must be 0 to 2^31-1");
  OffsetRange first = c.offset("token_offset");
  if (first.least < 0 || Wide(first.most) + tokens > kInt32Max)
    c.fail("the tokens' numbers leave the range of i32 on some rank");
  if ((c.text("policy") == "random") != c.hasInput("step"))
    c.fail("step is given exactly for the policy random");
}

/// What select and pack share: tokens are counted in i32, experts are at least one, and the need is
/// compared with B itself, so a ragged buffer has B rows a slot.
void checkDispatch(CallCheck &c, const char *rowsName) {
  int64_t choices = c.fixedRun("t"), k = c.fixed("k");
  if (Wide(choices) * k > kInt32Max)
    c.fail("tokens times k are more than an i32 can count");
  if (c.integer("experts") < 1 || c.integer("experts") > kInt32Max)
    c.fail("experts must be 1 to 2^31-1");
  Dim rows = c.dim(rowsName);
  if (rows.ragged && rows.scale != 1)
    c.fail(format("a slot has %s rows; a ragged slot has exactly B", sizeText(rows).c_str()));
}

void check_select(CallCheck &c) {
  checkDispatch(c, "R");
  c.fitsInt32(c.dim("R"), "rows");
  OffsetRange first = c.offset("expert_offset");
  if (first.least < 0 || Wide(first.most) + c.fixed("n") > c.integer("experts"))
    c.fail(format("expert_offset + %lld groups leaves the %lld experts on some rank",
                  static_cast<long long>(c.dim("n").scale),
                  static_cast<long long>(c.integer("experts"))));
}

void check_select_tokens(CallCheck &c) { check_select(c); }

void check_sample_counts(CallCheck &c) {
  c.fixed("B");
  c.fixedRun("t");
  c.fixed("k");
  c.fitsInt32({c.fixed("E")}, "experts");
}

void check_pack(CallCheck &c) {
  checkDispatch(c, "B");
  c.atLeast("segments", 1);
  int64_t slots = c.fixed("P"), columns = c.fixed("C"), tokens = c.fixedRun("t");
  int64_t experts = c.integer("experts"), segments = c.integer("segments");
  if (slots < 1 || segments < 1 || experts < 1)
    return;
  Dim rows = c.dim("B");
  if (Wide(slots) * rows.scale > kInt32Max)
    c.fail("rows of all slots are more than an i32 can count");
  else
    c.fitsInt32({slots * rows.scale, rows.ragged}, "rows of all slots");
  if (experts % slots != 0)
    c.fail(format("%lld experts do not divide into %lld slots", static_cast<long long>(experts),
                  static_cast<long long>(slots)));
  else if (Wide(experts / slots) * segments != columns)
    c.fail(format("counts have %lld columns, %lld experts a slot in %lld segments want their "
                  "product",
                  static_cast<long long>(columns), static_cast<long long>(experts / slots),
                  static_cast<long long>(segments)));
  if (tokens % segments != 0)
    c.fail(format("%lld tokens do not divide into %lld segments", static_cast<long long>(tokens),
                  static_cast<long long>(segments)));
}

/// regroup and ungroup: R = P * B and C is a multiple of segments.
void checkExchange(CallCheck &c) {
  c.atLeast("segments", 1);
  int64_t slots = c.fixed("P"), columns = c.fixed("C"), segments = c.integer("segments");
  if (segments < 1)
    return;
  Dim rows = c.dim("R"), slot = c.dim("B");
  if (rows.ragged != slot.ragged || Wide(slots) * slot.scale != rows.scale)
    c.fail(format("%s rows are not %lld slots of %s", sizeText(rows).c_str(),
                  static_cast<long long>(slots), sizeText(slot).c_str()));
  c.fitsInt32(rows, "rows");
  if (columns % segments != 0)
    c.fail(format("counts have %lld columns, which %lld segments do not divide",
                  static_cast<long long>(columns), static_cast<long long>(segments)));
}

void check_regroup(CallCheck &c) {
  checkExchange(c);
  if (Wide(c.fixed("n")) * c.integer("segments") != c.dim("C").scale)
    c.fail(format("%lld groups in %lld segments do not make %lld counts",
                  static_cast<long long>(c.dim("n").scale),
                  static_cast<long long>(c.integer("segments")),
                  static_cast<long long>(c.dim("C").scale)));
}

void check_ungroup(CallCheck &c) { checkExchange(c); }

void check_grouped_matmul(CallCheck &c) {
  c.fixed("n");
  c.fixedRun("N");
  c.fixedRun("K");
  c.fitsInt32(c.dim("R"), "rows");
}

void check_grouped_glu(CallCheck &c) {
  checkActivation(c);
  c.fixed("n");
  c.fixedRun("F");
  c.fixedRun("K");
  c.fitsInt32(c.dim("R"), "rows");
  c.runFitsInt32("t", "tokens");
  if (c.hasInput("tokens"))
    c.fixedRun("t");
  else if (c.run("t") != Shape{c.dim("R")})
    c.fail(format("x has other rows than the %s of out, and no tokens say which",
                  sizeText(c.dim("R")).c_str()));
}

void check_grouped_bias(CallCheck &c) {
  c.fixed("n");
  c.fixedRun("N");
  c.fitsInt32(c.dim("R"), "rows");
  c.offset("part");
}

void check_combine(CallCheck &c) {
  c.fixed("k");
  c.runFitsInt32("Q", "rows");
}

void check_write_rows(CallCheck &c) {
  int64_t rows = c.fixed("S"), all = c.fixed("N");
  if (rows > all)
    c.fail(format("%lld rows do not fit into %lld", static_cast<long long>(rows),
                  static_cast<long long>(all)));
  c.fixed("B");
  c.fixedRun("X");
  if (c.hasInput("rows2") != (c.outputCount() == 2))
    c.fail("rows2 and state2 are given together");
  else if (c.outputCount() == 2)
    c.fixedRun("Y");
  c.fitsInt32({all}, "rows of the state");
}

void check_slot(CallCheck &c) {
  c.fixed("S");
  if (c.inputType(0) != c.outputType(0))
    c.fail("x and out have one type");
  c.atLeast("index", 0);
  c.fitsInt32({c.integer("index")}, "slots");
  OffsetRange start = c.offset("start");
  if (start.least < 0 || start.most > kInt32Max)
    c.fail("start must be 0 to 2^31-1");
}

void check_sample(CallCheck &c) {
  c.fitsInt32({c.fixed("V")}, "tokens of the vocabulary");
  int64_t rows = c.fixed("B");
  OffsetRange first = c.offset("row_offset");
  if (first.least < 0 || Wide(first.most) + rows > kInt32Max)
    c.fail("the rows' numbers leave the range of i32 on some rank");
}

/// The parameter is in [least, most), or [least, infinity).
void checkRange(CallCheck &c, const char *name, double least, double most = INFINITY) {
  double value = c.real(name);
  if (!(value >= least && value < most))
    c.fail(format("%s is %g, outside %g to %g", name, value, least, most));
}

void check_adamw(CallCheck &c) {
  checkRange(c, "beta1", 0, 1);
  checkRange(c, "beta2", 0, 1);
  checkRange(c, "eps", 0);
  checkRange(c, "weight_decay", 0);
}

void check_expert_adamw(CallCheck &c) { check_adamw(c); }

void check_sgd(CallCheck &c) {
  checkRange(c, "momentum", 0);
  checkRange(c, "weight_decay", 0);
}

void check_balance_bias(CallCheck &c) {
  c.fixed("E");
  checkRange(c, "rate", 0);
}

void check_accumulate(CallCheck &c) { c.fixedRun("t"); }

/// Whether `part` is the dimensions of `whole` before `keep` and from `from` on, or [1] if there
/// are none.
bool isPart(const Shape &part, const Shape &whole, int64_t keep, int64_t from) {
  Shape wanted(whole.begin(), whole.begin() + keep);
  wanted.insert(wanted.end(), whole.begin() + from, whole.end());
  if (wanted.empty())
    return part.size() == 1 && part[0].scale == 1 && !part[0].ragged;
  return std::equal(part.begin(), part.end(), wanted.begin(), wanted.end(),
                    [](Dim a, Dim b) { return a.scale == b.scale && a.ragged == b.ragged; });
}

void check_squares(CallCheck &c) {
  c.fixedRun("t");
  const Shape &x = c.run("t");
  int64_t rank = static_cast<int64_t>(x.size());
  int64_t keep = c.integerOr("keep", 0), tail = c.integerOr("tail", 0);
  if (keep < 0 || tail < 0 || keep > rank || tail > rank - keep)
    c.fail(format("keep %lld and tail %lld are not within %s", static_cast<long long>(keep),
                  static_cast<long long>(tail), shapeText(x).c_str()));
  else if (!isPart(c.run("O"), x, keep, rank - tail))
    c.fail(format("%s is not what is kept of %s", shapeText(c.run("O")).c_str(),
                  shapeText(x).c_str()));
}

void check_second_moment(CallCheck &c) {
  if (c.integer("count") < 1)
    c.fail("count is not positive");
  checkRange(c, "decay", 0);
  checkRange(c, "eps", 0);
}

/// The layout of Adafactor's operands; without `rows` there is one moment, R...
void checkLayout(CallCheck &c, int64_t kept, int64_t rows) {
  const Shape &x = c.run("t");
  auto rank = static_cast<int64_t>(x.size());
  int64_t parameters = c.integer("parameters");
  for (Dim size : x)
    if (size.ragged)
      return c.fail("its operands may not depend on the bound");
  if (parameters < 0 || kept < parameters || kept > rank || rows < 0 || rows > rank ||
      (rows > 0 && kept + rows >= rank))
    return c.fail(format("parameters %lld, kept %lld, rows %lld do not fit %s",
                         static_cast<long long>(parameters), static_cast<long long>(kept),
                         static_cast<long long>(rows), shapeText(x).c_str()));
  bool fits = isPart(c.run("O"), x, parameters, rank);
  if (rows > 0)
    fits &= isPart(c.run("R"), x, kept + rows, rank) && isPart(c.run("C"), x, kept, kept + rows) &&
            isPart(c.run("M"), x, kept, rank);
  if (!fits)
    c.fail("the moments or norms are not those of " + shapeText(x));
}

void check_adafactor_norm(CallCheck &c) {
  int64_t rows = c.integer("rows");
  if (c.hasInput("columns") != (rows > 0) || c.hasInput("matrices") != (rows > 0))
    return c.fail("columns and matrices go with rows");
  if (rows == 0 &&
      !isPart(c.run("R"), c.run("t"), int64_t(c.run("t").size()), int64_t(c.run("t").size())))
    return c.fail("the moment is not like the gradient");
  checkLayout(c, c.integer("kept"), rows);
}

void checkAdafactorStep(CallCheck &c) {
  if (c.integer("count") < 1)
    c.fail("count is not positive");
  checkRange(c, "clip", 0);
  if (c.real("clip") == 0)
    c.fail("clip is 0");
  checkRange(c, "eps", 0);
  checkRange(c, "weight_decay", 0);
}

void check_adafactor(CallCheck &c) {
  if (c.integer("rows") < 1)
    return c.fail("a matrix has rows");
  checkLayout(c, c.integer("kept"), c.integer("rows"));
  checkAdafactorStep(c);
}

void check_adafactor_vector(CallCheck &c) {
  checkLayout(c, std::max<int64_t>(0, c.integer("parameters")), 0);
  checkAdafactorStep(c);
}

void check_exact_squares(CallCheck &c) { c.fixedRun("t"); }

void check_clip_factor(CallCheck &c) {
  checkRange(c, "max_norm", 0);
  if (int64_t n = c.fixed("n"); n != 1 && n != 160)
    c.fail("squares are neither one number nor the digits of exact_squares");
}

/// `whole` is cut into blocks along dim, `parts` has them along dimension 0.
void checkBlocks(CallCheck &c, const Shape &whole, const Shape &parts) {
  int64_t blocks = c.integer("blocks"), dim = c.integer("dim");
  bool fits = blocks >= 1 && blocks <= kInt32Max && whole.size() == parts.size() && dim >= 1 &&
              dim < static_cast<int64_t>(whole.size());
  for (size_t i = 0; fits && i < whole.size(); ++i) {
    int64_t more = i == 0 ? blocks : 1, less = static_cast<int64_t>(i) == dim ? blocks : 1;
    fits = !whole[i].ragged && !parts[i].ragged &&
           Wide(whole[i].scale) * more == Wide(parts[i].scale) * less;
  }
  if (!fits)
    c.fail(format("%s is not %s with dimension %lld cut into %lld blocks", shapeText(parts).c_str(),
                  shapeText(whole).c_str(), static_cast<long long>(dim),
                  static_cast<long long>(blocks)));
}

void check_split_blocks(CallCheck &c) { checkBlocks(c, c.run("X"), c.run("Y")); }
void check_join_blocks(CallCheck &c) { checkBlocks(c, c.run("Y"), c.run("X")); }

const std::map<std::string_view, void (*)(CallCheck &)> &checks() {
  static const std::map<std::string_view, void (*)(CallCheck &)> table = {
#define MOIRA_CALL(name, inputs, outputs, params) {#name, check_##name},
#include "moira/rt/Calls.def"
  };
  return table;
}

} // namespace

Status checkCall(const CallDesc &call, std::span<const CallOperand> inputs,
                 std::span<const CallOperand> outputs, std::span<const CallParam> params,
                 const CallEnv &env) {
  CallCheck check(call, inputs, outputs, params, env);
  if (check.unify())
    checks().at(call.name)(check);
  return check.take();
}

} // namespace moira::rt
