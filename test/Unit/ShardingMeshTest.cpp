//===- ShardingMeshTest.cpp - what is said about meshes that do not fit ---===//
// Suggestions fit, have as many ranks as asked for, and the nearest comes first.
//===----------------------------------------------------------------------===//
#include "ShardingTestUtil.h"
#include "moira/Analysis/MeshCheck.h"

using namespace mlir;
using namespace moira;

namespace {

class MeshCheckTest : public ShardingTest {
protected:
  MeshConstraint constraint(StringRef axis, int64_t size) {
    return {axis, "sizes", size, "", {}, UnknownLoc::get(&context)};
  }
  std::vector<std::string> suggestions(ArrayRef<MeshConstraint> constraints, StringRef wanted,
                                       size_t limit = 3) {
    std::vector<std::string> out;
    MeshInfo info = mesh(wanted);
    for (const MeshInfo &good : suggestMeshes(&context, constraints, info.ranks(), info, limit))
      out.push_back(formatMesh(good));
    return out;
  }
};

TEST_F(MeshCheckTest, NearestFirst) {
  std::vector<MeshConstraint> constraints = {constraint("dp", 4), constraint("ep", 64),
                                             constraint("tp", 4)};
  using Names = std::vector<std::string>;
  EXPECT_EQ(suggestions(constraints, "ep=8"), (Names{"ep=8", "ep=4,tp=2", "dp=2,ep=4"}));
  EXPECT_EQ(suggestions(constraints, "dp=8", 1), Names{"dp=4,tp=2"});
  EXPECT_EQ(suggestions(constraints, "ep=7"), Names{});
}

TEST_F(MeshCheckTest, SuggestionsFit) {
  std::vector<MeshConstraint> constraints = {constraint("dp", 6), constraint("ep", 12),
                                             constraint("tp", 4), constraint("tp", 6)};
  for (const char *wanted : {"dp=4", "ep=5,tp=3", "dp=3,ep=8", "tp=12", "dp=2,ep=2,tp=2"}) {
    MeshInfo info = mesh(wanted);
    for (const MeshInfo &good : suggestMeshes(&context, constraints, info.ranks(), info, 100)) {
      EXPECT_EQ(good.ranks(), info.ranks()) << wanted;
      for (const MeshConstraint &c : constraints)
        EXPECT_EQ(c.size % good.sizeOf(c.axis), 0) << wanted << ": " << formatMesh(good);
    }
  }
}

} // namespace
