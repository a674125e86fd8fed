//===- TrainDataTest.cpp ----------------------------------------*- C++ -*-===//
// Shows that indexed datasets are read as Megatron writes them, that every pass over a source gives
// each row once in another order, that positions can be taken up, that sources are mixed by their
// temperature, and that hostile indices are refused.
//===----------------------------------------------------------------------===//
#include "RuntimeFiles.h"

#include "moira/rt/TokenData.h"

#include <cmath>
#include <gmock/gmock.h>
#include <random>
#include <set>

using namespace moira::rt;
using namespace moira::test;
using testing::HasSubstr;

namespace {

template <typename T> void put(std::string &bytes, T value) {
  bytes.append(reinterpret_cast<const char *>(&value), sizeof value);
}

/// The parts of an index.
struct Index {
  std::string magic = std::string("MMIDIDX\0\0", 9);
  uint64_t version = 1;
  uint8_t type = 4;
  std::vector<int32_t> lengths;
  std::vector<int64_t> offsets, documents;
  std::string behind;

  std::string bytes() const {
    std::string all = magic;
    put(all, version);
    put(all, type);
    put(all, uint64_t(lengths.size()));
    put(all, uint64_t(documents.size()));
    for (int32_t length : lengths)
      put(all, length);
    for (int64_t offset : offsets)
      put(all, offset);
    for (int64_t document : documents)
      put(all, document);
    return all + behind;
  }
};

/// Writes sequences of tokens as type T.
template <typename T>
Index writeDataset(const std::string &prefix, uint8_t type,
                   const std::vector<std::vector<int64_t>> &sequences) {
  Index index;
  index.type = type;
  std::string bin;
  index.documents.push_back(0);
  for (const std::vector<int64_t> &sequence : sequences) {
    index.lengths.push_back(int32_t(sequence.size()));
    index.offsets.push_back(int64_t(bin.size()));
    for (int64_t token : sequence)
      put(bin, T(token));
    index.documents.push_back(int64_t(index.lengths.size()));
  }
  writeFile(prefix + ".bin", bin);
  writeFile(prefix + ".idx", index.bytes());
  return index;
}

/// Rows of `length` equal tokens: row r is r, r, ….
void writeRows(const std::string &prefix, int64_t rows, int64_t length, int64_t first = 0) {
  std::vector<std::vector<int64_t>> sequences;
  for (int64_t r = 0; r < rows; ++r)
    sequences.emplace_back(length, first + r);
  writeDataset<int32_t>(prefix, 4, sequences);
}

TEST(TrainData, SequencesOfEveryTypeAreRead) {
  TempDir directory;
  std::vector<std::vector<int64_t>> sequences = {{1, 2, 3}, {}, {4}, {5, 6, 7, 100}};
  auto check = [&](const std::string &name) {
    Expected<IndexedDataset> data = IndexedDataset::open(directory / name);
    ASSERT_TRUE(data) << data.status().str();
    EXPECT_EQ(data->sequences(), 4);
    EXPECT_EQ(data->tokens(), 8);
    std::vector<int32_t> tokens(5);
    ASSERT_TRUE(data->read(2, tokens, 101));
    EXPECT_EQ(tokens, (std::vector<int32_t>{3, 4, 5, 6, 7}));
    Status outside = data->read(3, tokens, 100);
    ASSERT_FALSE(outside);
    EXPECT_THAT(outside.str(), HasSubstr("token 100 at byte"));
  };
  writeDataset<uint8_t>(directory / "u8", 1, sequences), check("u8");
  writeDataset<int8_t>(directory / "i8", 2, sequences), check("i8");
  writeDataset<int16_t>(directory / "i16", 3, sequences), check("i16");
  writeDataset<int32_t>(directory / "i32", 4, sequences), check("i32");
  writeDataset<int64_t>(directory / "i64", 5, sequences), check("i64");
  writeDataset<uint16_t>(directory / "u16", 8, sequences), check("u16");
}

TEST(TrainData, AShuffleIsAPermutationAndDependsOnItsSeed) {
  for (uint64_t size : {1, 2, 3, 7, 64, 65, 1000, 4097}) {
    std::set<uint64_t> seen;
    int still = 0, alike = 0;
    Shuffle one(size, 1), two(size, 2);
    for (uint64_t i = 0; i < size; ++i) {
      ASSERT_LT(one[i], size);
      seen.insert(one[i]);
      still += one[i] == i;
      alike += one[i] == two[i];
    }
    EXPECT_EQ(seen.size(), size);
    if (size >= 1000) {
      EXPECT_LT(still, 12); // about one is expected
      EXPECT_LT(alike, 12);
    }
  }
}

TEST(TrainData, EveryPassGivesEachRowOnceInAnotherOrder) {
  TempDir directory;
  writeRows(directory / "a", 50, 6);
  Expected<TokenReader> reader =
      TokenReader::open({directory / "a"}, {.length = 6, .vocabulary = 50, .seed = 9});
  ASSERT_TRUE(reader) << reader.status().str();
  std::vector<std::vector<int32_t>> passes;
  for (uint64_t pass = 0; pass < 3; ++pass) {
    std::vector<int32_t> tokens(50 * 6), order;
    ASSERT_TRUE(reader->read(reader->start(), 50 * pass, 50, tokens));
    for (size_t row = 0; row < 50; ++row) {
      order.push_back(tokens[row * 6]);
      for (size_t i = 0; i < 6; ++i)
        EXPECT_EQ(tokens[row * 6 + i], order.back());
    }
    passes.push_back(order);
    std::sort(order.begin(), order.end());
    for (int32_t row = 0; row < 50; ++row)
      EXPECT_EQ(order[size_t(row)], row);
  }
  EXPECT_NE(passes[0], passes[1]);
  EXPECT_NE(passes[1], passes[2]);
}

TEST(TrainData, APositionIsTakenUpAndRanksReadTheirRows) {
  TempDir directory;
  writeRows(directory / "a", 40, 4);
  writeRows(directory / "b", 7, 4, 1000);
  Expected<TokenReader> reader = TokenReader::open({directory / "a", directory / "b"},
                                                   {.length = 4, .vocabulary = 2000, .seed = 3});
  ASSERT_TRUE(reader) << reader.status().str();
  std::vector<int32_t> all(100 * 4);
  ASSERT_TRUE(reader->read(reader->start(), 0, 100, all));
  DataPosition at = reader->start();
  for (uint64_t row = 0; row < 100; row += 10) {
    Expected<DataPosition> again = DataPosition::read(at.write(), 2);
    ASSERT_TRUE(again) << again.status().str();
    // Two ranks with half of a batch of ten each.
    for (uint64_t half : {0, 5}) {
      std::vector<int32_t> tokens(5 * 4);
      ASSERT_TRUE(reader->read(*again, half, 5, tokens));
      EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), &all[(row + half) * 4]));
    }
    at = reader->advance(at, 10);
  }
  for (const char *text : {"", "{}", "{\"rows\":3,\"taken\":[1,1]}", "{\"rows\":-1,\"taken\":[]}",
                           "{\"rows\":2,\"taken\":[1,\"1\"]}"})
    EXPECT_FALSE(DataPosition::read(text, 2)) << text;
  EXPECT_THAT(DataPosition::read(at.write(), 3).status().str(), HasSubstr("is of 2 sources"));
}

TEST(TrainData, SourcesAreMixedByTheirTemperature) {
  TempDir directory;
  writeRows(directory / "large", 800, 2);
  writeRows(directory / "small", 50, 2, 1000);
  for (double temperature : {1.0, 2.0, 100.0}) {
    Expected<TokenReader> reader =
        TokenReader::open({directory / "large", directory / "small"},
                          {.length = 2, .vocabulary = 2000, .seed = 4, .temperature = temperature});
    ASSERT_TRUE(reader);
    const uint64_t count = 20000;
    DataPosition at = reader->advance(reader->start(), count);
    double large = std::pow(800, 1 / temperature), small = std::pow(50, 1 / temperature);
    EXPECT_NEAR(double(at.taken[1]) / count, small / (large + small), 0.015) << temperature;
  }
}

TEST(TrainData, HostileIndicesAreRefused) {
  TempDir directory;
  std::string prefix = directory / "a";
  const Index good = writeDataset<int32_t>(prefix, 4, {{1, 2, 3}, {4, 5}});
  struct {
    std::function<void(Index &)> change;
    const char *says;
  } const cases[] = {
      {[](Index &i) { i.magic[0] = 'X'; }, "is no index of a Megatron dataset"},
      {[](Index &i) { i.version = 2; }, "is of version 2"},
      {[](Index &i) { i.type = 7; }, "type code 7"},
      {[](Index &i) { i.type = 0; }, "type code 0"},
      {[](Index &i) { i.type = 200; }, "type code 200"},
      {[](Index &i) { i.type = 5; }, "sequence 0 of 3 tokens at byte 0 does not lie in the 20"},
      {[](Index &i) { i.lengths[1] = 3; }, "sequence 1 of 3 tokens at byte 12 does not lie"},
      {[](Index &i) { i.lengths[0] = -1; }, "sequence 0 of -1 tokens"},
      {[](Index &i) { i.offsets[1] = -4; }, "sequence 1 of 2 tokens at byte -4"},
      {[](Index &i) { i.offsets[1] = 11; }, "sequence 1 of 2 tokens at byte 11"},
      {[](Index &i) { i.offsets[1] = INT64_MAX - 3; }, "sequence 1 of 2 tokens at byte"},
      {[](Index &i) { i.documents[1] = 5; }, "document 1 begins at sequence 5"},
      {[](Index &i) { i.documents[1] = -1; }, "document 1 begins at sequence -1"},
      {[](Index &i) { i.documents[2] = 0; }, "document 2 begins at sequence 0"},
      {[](Index &i) { i.documents[0] = 1; }, "document 0 begins at sequence 1"},
      {[](Index &i) { i.behind = "abc"; }, "3 bytes behind its tables"},
  };
  for (const auto &c : cases) {
    Index index = good;
    c.change(index);
    writeFile(prefix + ".idx", index.bytes());
    Expected<IndexedDataset> data = IndexedDataset::open(prefix);
    ASSERT_FALSE(data) << c.says;
    EXPECT_THAT(data.status().str(), HasSubstr(c.says));
    EXPECT_EQ(data.status().diagnostics()[0].id, ErrorId::BadInput);
  }
  std::string whole = good.bytes();
  for (size_t n = 0; n < whole.size(); ++n) {
    writeFile(prefix + ".idx", whole.substr(0, n));
    EXPECT_FALSE(IndexedDataset::open(prefix)) << n << " bytes";
  }
  // Any bytes at all: refused or sound, never outside.
  std::mt19937 random(3);
  for (int i = 0; i < 20000; ++i) {
    std::string changed = whole;
    for (int n = 1 + int(random() % 3); n > 0; --n)
      changed[random() % changed.size()] = char(random());
    writeFile(prefix + ".idx", changed);
    if (Expected<IndexedDataset> data = IndexedDataset::open(prefix); data && data->tokens() > 0) {
      std::vector<int32_t> tokens(size_t(std::min<int64_t>(data->tokens(), 1000)));
      (void)data->read(0, tokens, 1000).ok();
    }
  }
  writeFile(prefix + ".idx", whole);
  Expected<TokenReader> reader = TokenReader::open({prefix}, {.length = 6, .vocabulary = 10});
  ASSERT_FALSE(reader);
  EXPECT_THAT(reader.status().str(), HasSubstr("5 tokens are no row of 6"));
}

} // namespace
