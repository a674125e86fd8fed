//===- TokenReader.cpp - shuffled rows from several sources ---------------===//
// See TokenData.h.
//===----------------------------------------------------------------------===//
#include "moira/rt/Philox.h"
#include "moira/rt/TokenData.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <nlohmann/json.hpp>

namespace moira::rt {

Shuffle::Shuffle(uint64_t size, uint64_t seed)
    : size(size), seed(seed),
      halfBits(std::max(1, (static_cast<int>(std::bit_width(std::max<uint64_t>(size, 1) - 1)) + 1) /
                               2)) {}

uint64_t Shuffle::operator[](uint64_t index) const {
  const uint64_t mask = (uint64_t(1) << halfBits) - 1;
  // The network permutes fewer than 4 * size numbers, so a walk leads back inside soon.
  do {
    uint64_t left = index >> halfBits, right = index & mask;
    for (uint32_t round = 0; round < 6; ++round) {
      uint64_t draw = philox(seed, uint32_t(right), uint32_t(right >> 32), round, 0x5eedu);
      uint64_t next = left ^ (draw & mask);
      left = right;
      right = next;
    }
    index = left << halfBits | right;
  } while (index >= size);
  return index;
}

std::string DataPosition::write() const {
  return nlohmann::json({{"rows", rows}, {"taken", taken}}).dump();
}

Expected<DataPosition> DataPosition::read(const std::string &text, size_t sources) {
  auto bad = [&](const std::string &what) {
    return Status(ErrorId::BadInput, "the checkpoint's position in the data " + what);
  };
  nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object() || json.size() != 2 || !json.contains("rows") || !json.contains("taken") ||
      !json["rows"].is_number_unsigned() || !json["taken"].is_array())
    return bad("is damaged");
  DataPosition position{json["rows"].get<uint64_t>(), {}};
  uint64_t sum = 0;
  for (const nlohmann::json &one : json["taken"]) {
    if (!one.is_number_unsigned())
      return bad("is damaged");
    position.taken.push_back(one.get<uint64_t>());
    sum += position.taken.back();
  }
  if (sum != position.rows)
    return bad("is damaged");
  if (position.taken.size() != sources)
    return bad(format("is of %zu sources, --data names %zu", position.taken.size(), sources));
  return position;
}

Expected<TokenReader> TokenReader::open(const std::vector<std::string> &prefixes,
                                        const Options &options) {
  TokenReader reader;
  reader.options = options;
  Status problems;
  double total = 0;
  for (const std::string &prefix : prefixes) {
    Expected<IndexedDataset> source = IndexedDataset::open(prefix);
    if (!source) {
      problems.append(source.takeStatus());
      continue;
    }
    int64_t rows = source->tokens() / options.length;
    if (rows == 0)
      problems.add(ErrorId::BadInput,
                   format("%s: %lld tokens are no row of %lld", prefix.c_str(),
                          (long long)source->tokens(), (long long)options.length));
    total += std::pow(double(rows), 1 / options.temperature);
    reader.cumulative.push_back(total);
    reader.rows.push_back(static_cast<uint64_t>(rows));
    reader.sources.push_back(std::move(*source));
  }
  if (!problems)
    return problems;
  for (double &one : reader.cumulative)
    one /= total;
  return reader;
}

size_t TokenReader::sourceOf(uint64_t row) const {
  double draw = philox(options.seed, uint32_t(row), uint32_t(row >> 32), 0, 0x50c5u) / 4294967296.0;
  auto it = std::upper_bound(cumulative.begin(), cumulative.end(), draw);
  return std::min(static_cast<size_t>(it - cumulative.begin()), sources.size() - 1);
}

DataPosition TokenReader::advance(const DataPosition &from, uint64_t count) const {
  DataPosition to = from;
  for (uint64_t i = 0; i < count; ++i)
    ++to.taken[sourceOf(to.rows++)];
  return to;
}

Status TokenReader::read(const DataPosition &from, uint64_t first, uint64_t count,
                         std::span<int32_t> to) const {
  DataPosition at = advance(from, first);
  for (uint64_t i = 0; i < count; ++i) {
    size_t source = sourceOf(at.rows++);
    uint64_t number = at.taken[source]++, pass = number / rows[source];
    // Every pass over a source has an order of its own.
    Shuffle order(rows[source], options.seed ^ (pass * 0x9E3779B97F4A7C15u + source + 1));
    uint64_t row = order[number % rows[source]];
    Status status = sources[source].read(
        static_cast<int64_t>(row) * options.length,
        to.subspan(i * static_cast<uint64_t>(options.length), static_cast<size_t>(options.length)),
        options.vocabulary);
    if (!status)
      return status;
  }
  return {};
}

} // namespace moira::rt
