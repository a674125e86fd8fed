//===- Mesh.cpp - mesh text and the token split ---------------------------===//
#include "moira/Analysis/Mesh.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/Twine.h"

using namespace mlir;
using namespace moira;

static constexpr int64_t kMaxRanks = 1 << 20;

static const char *describeAxes() {
  return "axes are dp (batch), ep (experts, and batch outside of them) and tp (heads, widths, "
         "vocabulary)";
}

/// The known axis that is nearest to a misspelt one, if any is near.
static std::optional<StringRef> nearestAxis(StringRef name) {
  std::optional<StringRef> best;
  unsigned bestDistance = 2;
  for (StringRef known : {kDataAxis, kExpertAxis, kTensorAxis}) {
    unsigned distance = StringRef(name.lower()).edit_distance(known);
    if (distance < bestDistance) {
      best = known;
      bestDistance = distance;
    }
  }
  return best;
}

std::optional<MeshInfo> moira::parseMesh(MLIRContext *context, StringRef text,
                                         SmallVectorImpl<std::string> &problems) {
  MeshInfo mesh;
  SmallVector<StringRef> seen, parts;
  if (!text.empty())
    text.split(parts, ',');
  size_t before = problems.size();
  auto problem = [&](const Twine &what) {
    problems.push_back(("MOE-0103: --mesh=" + text + ": " + what).str());
  };
  int64_t ranks = 1;
  for (StringRef part : parts) {
    auto [nameText, sizeText] = part.split('=');
    StringRef name = nameText.trim();
    int64_t size = 0;
    if (!part.contains('=') || sizeText.trim().getAsInteger(10, size)) {
      problem("'" + part + "' is not axis=size; write for example --mesh=dp=2,ep=4");
      continue;
    }
    if (!llvm::is_contained({kDataAxis, kExpertAxis, kTensorAxis}, name)) {
      std::optional<StringRef> near = nearestAxis(name);
      problem("unknown axis '" + name + "'; " +
              (near ? "did you mean " + near->str() + "? " : std::string()) + describeAxes());
      continue;
    }
    if (llvm::is_contained(seen, name)) {
      problem("axis " + name + " stands twice; give every axis once");
      continue;
    }
    seen.push_back(name);
    if (size < 1 || size > kMaxRanks) {
      problem("axis " + name + " has size " + sizeText + "; sizes are 1 to 2^20");
      continue;
    }
    ranks *= size;
    if (ranks > kMaxRanks) {
      problem("more than 2^20 ranks");
      break;
    }
    if (size > 1) {
      mesh.names.push_back(StringAttr::get(context, name));
      mesh.sizes.push_back(size);
    }
  }
  if (problems.size() != before)
    return std::nullopt;
  return mesh;
}

std::string moira::formatMesh(const MeshInfo &mesh) {
  std::string text;
  for (auto [name, size] : llvm::zip(mesh.names, mesh.sizes))
    text += (text.empty() ? "" : ",") + name.str() + "=" + std::to_string(size);
  return text;
}

SmallVector<StringAttr> moira::axisIfPresent(const MeshInfo &mesh, StringRef axis) {
  SmallVector<StringAttr> axes;
  for (StringAttr name : mesh.names)
    if (name.getValue() == axis)
      axes.push_back(name);
  return axes;
}

TokenSplit moira::decideTokenSplit(const MeshInfo &mesh, int64_t batch, int64_t sequence) {
  TokenSplit split;
  split.batch = axisIfPresent(mesh, kDataAxis);
  SmallVector<StringAttr> ep = axisIfPresent(mesh, kExpertAxis);
  int64_t dp = mesh.sizeOf(kDataAxis), experts = mesh.sizeOf(kExpertAxis);
  if (batch % dp == 0 && batch / dp % experts == 0)
    llvm::append_range(split.batch, ep);
  else if (sequence % experts == 0)
    split.sequence = ep;
  return split;
}
