//===- ShardingRuleTest.cpp - the algebra's rules by example --------------===//
// Each table row is one claim of ShardingUtils.h or Mesh.h; the last test shows that a solution is
// a fixed point, which --dist-verify-shard relies on, for random rules.
//===----------------------------------------------------------------------===//
#include "ShardingTestUtil.h"
#include <random>

using namespace mlir;
using namespace moira;
using dist::DimShardingAttr;
using dist::ShardingAttr;

namespace {

constexpr FactorKind pass = FactorKind::passThrough, sum = FactorKind::reduction,
                     whole = FactorKind::needReplication, freely = FactorKind::unconstrained;

struct Claim {
  const char *what;
  std::vector<const char *> operands; // as they are; "" is free
  const char *seed;                   // of the result; "" is none
  std::vector<const char *> wanted;   // what the operands must have
  const char *result;
};

class ShardingRuleTest : public ShardingTest {
protected:
  void check(const FactorRule &rule, ArrayRef<Claim> claims) {
    for (const Claim &claim : claims) {
      SmallVector<ShardingAttr> operands;
      for (const char *operand : claim.operands)
        operands.push_back(sharding(operand));
      RuleSolution solution = solveRule(&context, rule, operands, {sharding(claim.seed)});
      for (auto [wanted, operand] : llvm::zip_equal(claim.wanted, solution.operands))
        EXPECT_EQ(text(operand), wanted) << claim.what;
      EXPECT_EQ(text(solution.results[0]), claim.result) << claim.what;
    }
  }

  /// x[b,K], w[N,K] → [b,N]
  static FactorRule linear() {
    FactorRule rule;
    int b = rule.addFactor(pass, 8), k = rule.addFactor(sum, 8), n = rule.addFactor(pass, 8);
    rule.operands = {{b, k}, {n, k}};
    rule.results = {{b, n}};
    rule.linearity = Linearity::first;
    return rule;
  }
};

TEST_F(ShardingRuleTest, Linear) {
  check(linear(),
        {{"nothing is cut", {"[{}, {}]", "[{}, {}]"}, "", {"[{}, {}]", "[{}, {}]"}, "[{}, {}]"},
         {"cut outputs cut the result",
          {"[{dp}, {}]", "[{tp}, {}]"},
          "",
          {"[{dp}, {}]", "[{tp}, {}]"},
          "[{dp}, {tp}]"},
         {"cut sums leave it partial",
          {"[{dp}, {tp}]", "[{}, {tp}]"},
          "",
          {"[{dp}, {tp}]", "[{}, {tp}]"},
          "[{dp}, {}], partial = sum{tp}"},
         {"a free weight follows",
          {"[{dp}, {tp}]", ""},
          "",
          {"[{dp}, {tp}]", "[{}, {tp}]"},
          "[{dp}, {}], partial = sum{tp}"},
         {"x is sliced to the weight's sum",
          {"[{dp}, {}]", "[{}, {tp}]"},
          "",
          {"[{dp}, {tp}]", "[{}, {tp}]"},
          "[{dp}, {}], partial = sum{tp}"},
         {"pads go along",
          {"[{}, {}]", "[{tp} pad 1, {}]"},
          "",
          {"[{}, {}]", "[{tp} pad 1, {}]"},
          "[{}, {tp} pad 1]"},
         {"a partial x stays partial",
          {"[{}, {}], partial = sum{ep}", "[{}, {}]"},
          "",
          {"[{}, {}], partial = sum{ep}", "[{}, {}]"},
          "[{}, {}], partial = sum{ep}"},
         {"both kinds of partial add up",
          {"[{}, {tp}], partial = sum{ep}", "[{}, {tp}]"},
          "",
          {"[{}, {tp}], partial = sum{ep}", "[{}, {tp}]"},
          "[{}, {}], partial = sum{ep, tp}"},
         {"but not over an axis that cuts",
          {"[{}, {}], partial = sum{tp}", "[{tp}, {}]"},
          "",
          {"[{}, {}]", "[{tp}, {}]"},
          "[{}, {tp}]"},
         {"a maximum is not linear",
          {"[{}, {}], partial = max{ep}", "[{}, {}]"},
          "",
          {"[{}, {}]", "[{}, {}]"},
          "[{}, {}]"},
         {"a partial weight is completed",
          {"[{}, {}]", "[{}, {}], partial = sum{ep}"},
          "",
          {"[{}, {}]", "[{}, {}]"},
          "[{}, {}]"},
         {"an axis stands once: the first keeps it",
          {"[{tp}, {}]", "[{tp}, {}]"},
          "",
          {"[{tp}, {}]", "[{}, {}]"},
          "[{tp}, {}]"},
         {"a sum's axis may not cut the result",
          {"[{tp}, {}]", "[{}, {tp}]"},
          "",
          {"[{tp}, {}]", "[{}, {}]"},
          "[{tp}, {}]"},
         {"a seed cuts x",
          {"[{dp}, {}]", "[{}, {}]"},
          "[{dp, ep}, {}]",
          {"[{dp, ep}, {}]", "[{}, {}]"},
          "[{dp, ep}, {}]"},
         {"a seed is not continued",
          {"[{dp, ep}, {}]", "[{}, {}]"},
          "[{dp}, {}]",
          {"[{dp}, {}]", "[{}, {}]"},
          "[{dp}, {}]"}});
}

TEST_F(ShardingRuleTest, SumsAreJointlyLinear) {
  FactorRule rule;
  int a = rule.addFactor(pass, 8);
  rule.operands = {{a}, {a}};
  rule.results = {{a}};
  rule.linearity = Linearity::jointly;
  check(
      rule,
      {{"alike",
        {"[{}], partial = sum{tp}", "[{}], partial = sum{tp}"},
        "",
        {"[{}], partial = sum{tp}", "[{}], partial = sum{tp}"},
        "[{}], partial = sum{tp}"},
       {"common axes stay",
        {"[{}], partial = sum{ep, tp}", "[{}], partial = sum{tp}"},
        "",
        {"[{}], partial = sum{tp}", "[{}], partial = sum{tp}"},
        "[{}], partial = sum{tp}"},
       {"beside a complete one", {"[{}], partial = sum{tp}", "[{}]"}, "", {"[{}]", "[{}]"}, "[{}]"},
       {"the longer cut wins",
        {"[{dp}]", "[{dp, ep}]"},
        "",
        {"[{dp, ep}]", "[{dp, ep}]"},
        "[{dp, ep}]"},
       {"else the first", {"[{dp}]", "[{ep, dp}]"}, "", {"[{dp}]", "[{dp}]"}, "[{dp}]"},
       {"a cut over a partial axis",
        {"[{}], partial = sum{tp}", "[{tp}]"},
        "",
        {"[{tp}]", "[{tp}]"},
        "[{tp}]"}});
}

TEST_F(ShardingRuleTest, FollowersAndWholes) {
  // q[h], k[u, g] → [h]: all of u, g cut like h or not at all
  FactorRule rule;
  int h = rule.addFactor(pass, 8), u = rule.addFactor(whole, 8), g = rule.addFactor(freely, 4, h);
  rule.operands = {{h}, {u, g}};
  rule.results = {{h}};
  check(
      rule,
      {{"alike", {"[{tp}]", "[{}, {tp}]"}, "", {"[{tp}]", "[{}, {tp}]"}, "[{tp}]"},
       {"kv heads whole", {"[{tp}]", "[{}, {}]"}, "", {"[{tp}]", "[{}, {}]"}, "[{tp}]"},
       {"gathered where q is whole", {"[{}]", "[{}, {tp}]"}, "", {"[{}]", "[{}, {}]"}, "[{}]"},
       {"gathered where cut otherwise",
        {"[{tp}]", "[{}, {tp, ep}]"},
        "",
        {"[{tp}]", "[{}, {}]"},
        "[{tp}]"},
       {"keys are gathered", {"[{tp}]", "[{ep}, {tp}]"}, "", {"[{tp}]", "[{}, {tp}]"}, "[{tp}]"}});
}

TEST_F(ShardingRuleTest, RaggedRowsPassThrough) {
  // rows[r, K], w[e, N, K] → [r, N]
  FactorRule rule;
  int r = rule.addFactor(pass, 8), k = rule.addFactor(sum, 8), e = rule.addFactor(freely, 4),
      n = rule.addFactor(pass, 8);
  rule.operands = {{r, k}, {e, n, k}};
  rule.results = {{r, n}};
  rule.linearity = Linearity::first;
  check(rule, {{"up",
                {"[ragged{dp}{ep} 2x4, {}]", "[{ep}, {tp}, {}]"},
                "",
                {"[ragged{dp}{ep} 2x4, {}]", "[{ep}, {tp}, {}]"},
                "[ragged{dp}{ep} 2x4, {tp}]"},
               {"down",
                {"[ragged{dp}{ep} 2x4, {tp}]", "[{ep}, {}, {tp}]"},
                "",
                {"[ragged{dp}{ep} 2x4, {tp}]", "[{ep}, {}, {tp}]"},
                "[ragged{dp}{ep} 2x4, {}], partial = sum{tp}"}});
}

TEST_F(ShardingRuleTest, SolutionsAreFixedPoints) {
  uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  auto upTo = [&](int n) { return int(random() % n); };
  std::vector<StringAttr> axes;
  for (const char *axis : {"dp", "ep", "tp"})
    axes.push_back(StringAttr::get(&context, axis));
  MeshInfo info = mesh("dp=2,ep=2,tp=2");
  for (int round = 0; round < 2000; ++round) {
    FactorRule rule;
    for (int i = 0, n = 2 + upTo(4); i < n; ++i)
      rule.addFactor(upTo(3) ? pass : sum, 8);
    rule.linearity = Linearity(upTo(3));
    SmallVector<int> result;
    for (size_t i = 0; i < rule.factors.size(); ++i)
      if (rule.factors[i].kind == pass)
        result.push_back(i);
    rule.results = {result};
    SmallVector<ShardingAttr> operands;
    for (int o = 0, n = 1 + upTo(3); o < n; ++o) {
      SmallVector<int> factors;
      for (size_t i = 0; i < rule.factors.size(); ++i)
        if (upTo(4))
          factors.push_back(i);
      if (factors.empty())
        factors.push_back(0);
      rule.operands.push_back(factors);
      // Every axis goes to one dimension, to the partial ones or nowhere.
      SmallVector<SmallVector<StringAttr>> dims(factors.size());
      SmallVector<StringAttr> partial;
      for (StringAttr axis : axes)
        if (int where = upTo(factors.size() + 2); where < int(factors.size()))
          dims[where].push_back(axis);
        else if (where == int(factors.size()))
          partial.push_back(axis);
      SmallVector<DimShardingAttr> cuts;
      for (auto &dim : dims)
        cuts.push_back(DimShardingAttr::split(&context, dim));
      operands.push_back(upTo(6) ? ShardingAttr::get(&context, cuts).withPartial(partial)
                                 : ShardingAttr());
    }
    RuleSolution first = solveRule(&context, rule, operands, {ShardingAttr()});
    for (ShardingAttr operand : first.operands)
      ASSERT_EQ(text(operand), text(sharding(text(operand)))) << "an axis stands twice";
    ASSERT_TRUE(sharding(text(first.results[0]))) << "an axis stands twice";
    RuleSolution second = solveRule(&context, rule, first.operands, first.results);
    for (auto [a, b] : llvm::zip(first.operands, second.operands))
      ASSERT_EQ(text(canonicalPartial(a, info)), text(canonicalPartial(b, info)));
    ASSERT_EQ(text(canonicalPartial(first.results[0], info)),
              text(canonicalPartial(second.results[0], info)));
  }
}

TEST_F(ShardingRuleTest, CanonicalForms) {
  MeshInfo info = mesh("dp=2,ep=2,tp=2");
  EXPECT_EQ(text(canonicalPartial(sharding("[{}], partial = sum{tp, dp}"), info)),
            "[{}], partial = sum{dp, tp}");
  EXPECT_EQ(text(canonicalPartial(sharding("[{}], partial = max{tp, zz}"), info)),
            "[{}], partial = max{tp, zz}");
  EXPECT_EQ(text(withBound(sharding("[ragged{dp}{ep} 2x4, {}]"), 7)), "[ragged{dp}{ep} 2x7, {}]");
  EXPECT_EQ(text(withBound(sharding("[ragged{dp}{} 1x4, {}]"), 7)), "[ragged{dp}{} 1x4, {}]")
      << "rows that cannot grow keep their number";
}

TEST_F(ShardingRuleTest, TokenSplit) {
  struct {
    const char *mesh;
    int64_t batch, sequence;
    const char *wanted;
  } claims[] = {
      {"", 2, 24, "[{}, {}]"},
      {"dp=2", 2, 24, "[{dp}, {}]"},
      {"ep=2", 2, 24, "[{ep}, {}]"},
      {"ep=4", 2, 24, "[{}, {ep}]"},
      {"dp=2,ep=2", 2, 24, "[{dp}, {ep}]"},
      {"dp=2,ep=2", 4, 24, "[{dp, ep}, {}]"},
      {"ep=2,dp=2", 4, 24, "[{dp, ep}, {}]"},
      {"dp=2,ep=2,tp=2", 2, 25, "[{dp}, {}]"},
      {"ep=8", 1, 24, "[{}, {ep}]"},
      {"ep=8", 1, 29, "[{}, {}]"},
      {"ep=8", 1, 2, "[{}, {}]"},
  };
  for (const auto &claim : claims) {
    TokenSplit split = decideTokenSplit(mesh(claim.mesh), claim.batch, claim.sequence);
    auto got = ShardingAttr::get(&context, {DimShardingAttr::split(&context, split.batch),
                                            DimShardingAttr::split(&context, split.sequence)});
    EXPECT_EQ(text(got), claim.wanted) << claim.mesh << " " << claim.batch << "x" << claim.sequence;
  }
}

TEST_F(ShardingRuleTest, MeshText) {
  EXPECT_EQ(formatMesh(mesh("ep=4, dp=2 ,tp=1")), "ep=4,dp=2");
  EXPECT_EQ(mesh("dp=2,ep=4").ranks(), 8);
  for (const char *bad : {"dp", "dp=", "=2", "dp=2,", ",", "dp=-1", "dp=2.5", "dp=2 ep=2", "pp=2",
                          "dp=99999999999999999999"}) {
    SmallVector<std::string> problems;
    EXPECT_FALSE(parseMesh(&context, bad, problems)) << bad;
    EXPECT_FALSE(problems.empty()) << bad;
  }
}

} // namespace
