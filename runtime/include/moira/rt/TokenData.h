//===- TokenData.h - token ids from disk, in a shuffled order ---*- C++ -*-===//
// Batches for training from Megatron's indexed datasets: samples of a fixed length, shuffled, from
// one or several sources. What sample n is depends on nothing but the files, the seed and n, so a
// position is a few counters and any rank can read any rows.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_TOKENDATA_H
#define MOIRA_RT_TOKENDATA_H

#include "moira/rt/Status.h"

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace moira::rt {

/// PREFIX.bin and PREFIX.idx, mapped and checked. The index (megatron/core/datasets/
/// indexed_dataset.py, little-endian): "MMIDIDX\0\0", u64 version 1, u8 type, u64 sequences,
/// u64 documents, i32 length and i64 byte offset of every sequence, i64 first sequence of every
/// document and the end of the last one. Copies share the maps; thread-safe.
class IndexedDataset {
public:
  /// FileNotFound; BadInput with what is wrong: sizes that do not fit, a sequence outside the .bin
  /// file, offsets that are no multiples of the type, documents out of order.
  static Expected<IndexedDataset> open(const std::string &prefix);

  const std::string &prefix() const { return name; }
  int64_t sequences() const { return static_cast<int64_t>(starts.size()) - 1; }
  /// Of all sequences.
  int64_t tokens() const { return starts.back(); }
  /// Tokens [first, first + to.size()) of all sequences one behind the other. BadInput if one is
  /// not in [0, vocabulary).
  Status read(int64_t first, std::span<int32_t> to, int64_t vocabulary) const;

private:
  std::string name;
  std::shared_ptr<const void> owner; // of the maps
  std::span<const uint8_t> bin;
  int type = 0;
  std::vector<int64_t> starts;  // first token of each sequence, and the number of all
  std::vector<int64_t> offsets; // in bin
};

/// A permutation of [0, size) without memory: a Feistel network over the counters, walked until it
/// is back inside.
class Shuffle {
public:
  Shuffle(uint64_t size, uint64_t seed);
  uint64_t operator[](uint64_t index) const;

private:
  uint64_t size, seed;
  int halfBits;
};

/// Where a reader is: rows given so far, and how many of them from each source.
struct DataPosition {
  uint64_t rows = 0;
  std::vector<uint64_t> taken;
  /// JSON, for checkpoints.
  std::string write() const;
  /// BadInput for a text that is none, or of another number of sources.
  static Expected<DataPosition> read(const std::string &text, size_t sources);
};

/// Rows of `length` tokens: each source is cut into rows one behind the other (what is left at its
/// end is not used), in an order that is shuffled anew in every pass over it.
class TokenReader {
public:
  struct Options {
    int64_t length = 0, vocabulary = 0;
    uint64_t seed = 0;
    /// A source of n rows is chosen with a probability ∝ n^(1/temperature): 1 in proportion, large
    /// ones all alike.
    double temperature = 1;
  };
  /// BadInput if a source has no whole row.
  static Expected<TokenReader> open(const std::vector<std::string> &prefixes,
                                    const Options &options);

  /// The position after `rows` more rows. Every rank makes the same one.
  DataPosition advance(const DataPosition &from, uint64_t rows) const;
  /// Rows [first, first + count) of those behind `from`, one behind the other, to `to`
  /// (count * length tokens).
  Status read(const DataPosition &from, uint64_t first, uint64_t count,
              std::span<int32_t> to) const;
  DataPosition start() const { return {0, std::vector<uint64_t>(sources.size())}; }

private:
  size_t sourceOf(uint64_t row) const;

  Options options;
  std::vector<IndexedDataset> sources;
  std::vector<uint64_t> rows;     // of each source
  std::vector<double> cumulative; // probabilities up to each source
};

} // namespace moira::rt

#endif // MOIRA_RT_TOKENDATA_H
