//===- RopeSpec.h - rotary embedding, resolved ------------------*- C++ -*-===//
// What a config says about rotary embedding, and the frequencies that this means for a sequence of
// some length. Semantics and rounding are those of the published implementation (transformers
// 5.17): frequencies are made in float.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_IMPORT_ROPESPEC_H
#define MOIRA_IMPORT_ROPESPEC_H

#include "moira/rt/Status.h"
#include "llvm/ADT/StringRef.h"
#include "llvm/Support/JSON.h"
#include <optional>
#include <string>
#include <vector>

namespace moira {

struct RopeSpec {
  enum class Scaling { none, linear, dynamic, yarn, longrope, llama3 };
  Scaling scaling = Scaling::none;
  double theta = 0;
  int64_t dim = 0; // rotated elements of a head, twice the number of frequencies
  double factor = 1;
  /// Positions that the model takes, and those that it was first trained with.
  double positions = 0, originalPositions = 0;
  // yarn
  double betaFast = 32, betaSlow = 1;
  bool truncate = true;
  double mscale = 0, mscaleAllDim = 0; // 0: not given
  // yarn and longrope
  std::optional<double> attentionFactor;
  // longrope: one divisor a frequency, for sequences up to originalPositions and beyond
  std::vector<double> shortDivisors, longDivisors;
  /// If given: factors of cos and sin instead of attentionFactor, and the short divisors always.
  std::optional<double> shortFactor, longFactor;
  // llama3
  double lowFrequencyFactor = 1, highFrequencyFactor = 1;

  /// What moe.rope_table is given for a sequence of `length` tokens. Values of `frequencies` are
  /// floats.
  struct Table {
    std::vector<double> frequencies;
    double factor = 1; // of cos and sin
  };
  Table table(int64_t length) const;
  /// What DeepSeek models multiply scores with besides 1/sqrt(d).
  double scoreFactor() const;
};

/// Where a config speaks of rotary embedding.
struct RopeFields {
  std::string fileName;
  std::string field; // what the object is called there
  const llvm::json::Object *parameters = nullptr;
  double theta = 0;                                   // where the object has none
  std::optional<double> positions, originalPositions; // the fields beside the object
  /// Part of a head that is rotated, where the object does not say; absent: the class rotates all.
  std::optional<double> partial;
  int64_t headDim = 0;
  bool ownFactors = false; // short_mscale and long_mscale are known (phimoe)
};

/// Reads and checks them. Problems go to `status`.
RopeSpec readRope(const RopeFields &fields, rt::Status &status);

} // namespace moira

#endif // MOIRA_IMPORT_ROPESPEC_H
