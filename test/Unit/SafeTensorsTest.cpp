//===- SafeTensorsTest.cpp --------------------------------------*- C++ -*-===//
// Shows that the safetensors reader gives what is in good files and refuses every kind of bad one
// with a message that names the file and the tensor, and that the writer is all or nothing.
//===----------------------------------------------------------------------===//
#include "RuntimeFiles.h"

#include "moira/rt/Checkpoint.h"
#include "moira/rt/SafeTensorsWriter.h"

#include <csignal>
#include <gmock/gmock.h>
#include <random>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

using namespace moira::rt;
using namespace moira::test;
using testing::HasSubstr;

namespace {

Expected<SafeTensorsFile> parse(const std::string &bytes, SafeTensorsOptions options = {}) {
  return SafeTensorsFile::fromBytes({reinterpret_cast<const uint8_t *>(bytes.data()), bytes.size()},
                                    "f.safetensors", options);
}

const char *const kOne = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";

TEST(SafeTensors, ReadsWhatIsThere) {
  std::vector<float> w = {1, 2, 3, 4, 5, 6};
  std::vector<int64_t> ids = {-1, 7};
  TempDir dir;
  writeFile(dir / "m.safetensors", safetensorsBytes({testTensor("w", "F32", {2, 3}, w),
                                                     testTensor("ids", "I64", {2}, ids),
                                                     {"none", "BF16", {0, 4}, ""},
                                                     testTensor<float>("scalar", "F32", {}, {9})}));
  auto file = SafeTensorsFile::open(dir / "m.safetensors");
  ASSERT_TRUE(file) << file.status().str();
  ASSERT_EQ(file->tensors().size(), 4u);
  const TensorInfo *t = file->find("w");
  ASSERT_TRUE(t);
  EXPECT_EQ(t->type, TensorType::f32);
  EXPECT_EQ(t->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(std::memcmp(file->data(*t).data(), w.data(), 24), 0);
  EXPECT_EQ(std::memcmp(file->data(*file->find("ids")).data(), ids.data(), 16), 0);
  EXPECT_EQ(file->find("none")->bytes, 0u);
  EXPECT_TRUE(file->find("scalar")->shape.empty());
  EXPECT_EQ(file->find("absent"), nullptr);
}

TEST(SafeTensors, ReadsMetadataEscapesAndPaddedHeaders) {
  auto file = parse(safetensorsBytes(
      std::string(
          R"({"__metadata__":{"format":"pt"},"a\u00e9":{"data_offsets":[0,1],"shape":[1],"dtype":"U8"}}   )"),
      "x"));
  ASSERT_TRUE(file) << file.status().str();
  EXPECT_EQ(file->metadata().at("format"), "pt");
  EXPECT_NE(file->find("a\xc3\xa9"), nullptr);
}

TEST(SafeTensors, SubByteTypesCountBits) {
  EXPECT_TRUE(parse(safetensorsBytes(
      std::string(R"({"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}})"), "xx")));
  EXPECT_FALSE(parse(safetensorsBytes(
      std::string(R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}})"), "xx")));
}

struct Hostile {
  const char *name;
  std::string bytes;
  const char *says;
};

std::string entry(const std::string &fields) { return "{\"a\":{" + fields + "}}"; }

std::vector<Hostile> hostileFiles() {
  std::string eight(8, 'x');
  auto h = [&](const std::string &header) { return safetensorsBytes(header, eight); };
  std::string sized = safetensorsBytes(std::string(kOne), eight);
  auto withLength = [&](uint64_t length) {
    std::string bytes = sized;
    for (int i = 0; i < 8; ++i)
      bytes[i] = static_cast<char>(length >> (8 * i));
    return bytes;
  };
  return {
      {"Empty", "", "too few"},
      {"SevenBytes", "1234567", "too few"},
      {"LengthOver100MB", withLength(100'000'001), "allows 100000000"},
      {"LengthAllOnes", withLength(UINT64_MAX), "allows"},
      {"LengthPastEnd", withLength(sized.size()), "ends in its header"},
      {"LengthZero", withLength(0), "does not start with '{'"},
      {"NoBrace", h(" {}"), "does not start with '{'"},
      {"List", h("[]"), "does not start with '{'"},
      {"BrokenJson", h(R"({"a":)"), "not valid JSON"},
      {"TwoValues", h("{}{}"), "not valid JSON"},
      {"BadUtf8", h("{\"\xff\":{}}"), "not valid JSON"},
      {"DeepObjects", h("{\"a\":{\"b\":{\"c\":{}}}}"), "an object where none belongs"},
      {"DeepLists", h("{" + std::string(1 << 20, '[')), "not valid JSON"},
      {"DeepListsOfValues", h("{\"a\":" + std::string(1 << 20, '[')), "a list where none belongs"},
      {"DeepObjectText",
       h("{\"a\":" +
         [] {
           std::string s;
           for (int i = 0; i < 100000; ++i)
             s += "{\"a\":";
           return s;
         }()),
       "where none belongs"},
      {"NumberForTensor", h(R"({"a":3})"), "a number where an object belongs"},
      {"DuplicateTensor",
       h(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})"),
       "tensor 'a' stands twice"},
      {"DuplicateField",
       h(entry(R"("dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8])")),
       "'dtype' stands twice"},
      {"DuplicateMetadata", h(R"({"__metadata__":{},"__metadata__":{}})"), "two __metadata__"},
      {"DuplicateMetadataKey", h(R"({"__metadata__":{"x":"1","x":"2"}})"), "'x' twice"},
      {"MetadataNumber", h(R"({"__metadata__":{"x":1}})"), "not a string"},
      {"MetadataList", h(R"({"__metadata__":[]})"), "a list where none belongs"},
      {"UnknownField", h(entry(R"("dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1)")),
       "'x' is a number"},
      {"NoDtype", h(entry(R"("shape":[2],"data_offsets":[0,8])")), "no dtype"},
      {"NoShape", h(entry(R"("dtype":"F32","data_offsets":[0,8])")), "no shape"},
      {"NoOffsets", h(entry(R"("dtype":"F32","shape":[2])")), "no data_offsets"},
      {"UnknownDtype", h(entry(R"("dtype":"F31","shape":[2],"data_offsets":[0,8])")), "'F31'"},
      {"DtypeNumber", h(entry(R"("dtype":32,"shape":[2],"data_offsets":[0,8])")),
       "'dtype' is a number"},
      {"ShapeString", h(entry(R"("dtype":"F32","shape":"2","data_offsets":[0,8])")),
       "'shape' is a string"},
      {"ShapeNegative", h(entry(R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])")),
       "-2 in shape"},
      {"ShapeFraction", h(entry(R"("dtype":"F32","shape":[2.0],"data_offsets":[0,8])")), "2.0"},
      {"ShapeHuge", h(entry(R"("dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8])")),
       "too large"},
      {"ShapeBeyond64Bits",
       h(entry(R"("dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,8])")),
       "not a 64-bit integer"},
      {"ProductOverflows",
       h(entry(R"("dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,8])")),
       "too many elements"},
      {"ProductWrapsToSize",
       h(entry(R"("dtype":"F32","shape":[4611686018427387904,4,2],"data_offsets":[0,8])")),
       "too many elements"},
      {"ProductOverflowsBehindZero",
       h(entry(
           R"("dtype":"F32","shape":[0,4294967296,4294967296,4294967296],"data_offsets":[0,0])")),
       "too many elements"},
      {"ManyDimensions",
       h(entry(R"("dtype":"F32","shape":[)" +
               [] {
                 std::string s = "1";
                 for (int i = 0; i < 1000; ++i)
                   s += ",1";
                 return s;
               }() +
               R"(],"data_offsets":[0,4])")),
       "more than 16 dimensions"},
      {"NestedShape", h(entry(R"("dtype":"F32","shape":[[2]],"data_offsets":[0,8])")),
       "a list where none belongs"},
      {"OneOffset", h(entry(R"("dtype":"F32","shape":[2],"data_offsets":[0])")), "1 numbers"},
      {"ThreeOffsets", h(entry(R"("dtype":"F32","shape":[2],"data_offsets":[0,8,8])")),
       "3 numbers"},
      {"OffsetsSwapped", h(entry(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])")),
       "do not hold the 8 bytes"},
      {"OffsetsTooShort", h(entry(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])")),
       "do not hold the 8 bytes"},
      {"OffsetsWrap",
       h(entry(R"("dtype":"F32","shape":[2],"data_offsets":[18446744073709551612,4])")),
       "do not hold"},
      {"OffsetsFar",
       h(entry(
           R"("dtype":"F32","shape":[2],"data_offsets":[18446744073709551600,18446744073709551608])")),
       "do not hold"},
      {"TruncatedData", safetensorsBytes(std::string(kOne), "xxxx"), "truncated"},
      {"BytesLeftOver", safetensorsBytes(std::string(kOne), eight + "y"),
       "1 bytes at the end belong to no tensor"},
      {"Hole", h(entry(R"("dtype":"F32","shape":[1],"data_offsets":[4,8])")),
       "4 bytes before tensor 'a'"},
      {"Overlap",
       h(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})"),
       "overlaps"},
      {"EmptyInsideAnother",
       h(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[0],"data_offsets":[4,4]}})"),
       "'b' overlaps tensor 'a'"},
      {"LongName", h("{\"" + std::string((1 << 20) + 1, 'n') + "\":{}}"), "at most 1048576"},
      {"ControlNameIsEscaped", h("{\"a\\u001b[31m\":{}}"), "\\x1b"},
  };
}

TEST(SafeTensors, RefusesHostileFiles) {
  for (const Hostile &hostile : hostileFiles()) {
    auto file = parse(hostile.bytes);
    ASSERT_FALSE(file) << hostile.name;
    std::string text = file.status().str();
    EXPECT_EQ(file.status().diagnostics().front().id, ErrorId::BadSafetensors) << hostile.name;
    EXPECT_THAT(text, HasSubstr(hostile.says)) << hostile.name;
    EXPECT_THAT(text, HasSubstr("f.safetensors")) << hostile.name;
    EXPECT_LT(text.size(), 8000u) << hostile.name;
  }
}

TEST(SafeTensors, ListsAllProblemsOfAFile) {
  auto file = parse(safetensorsBytes(
      std::string(
          R"({"a":{"dtype":"F31","shape":[-1],"data_offsets":[0]},"b":{"dtype":"F32","shape":[1]}})"),
      ""));
  ASSERT_FALSE(file);
  EXPECT_EQ(file.status().diagnostics().size(), 4u) << file.status().str();
}

TEST(SafeTensors, EveryByteChangedIsRefusedOrSound) {
  // Whatever one changed byte makes of the file: if it is accepted, every tensor lies inside it.
  std::string good = safetensorsBytes(
      {testTensor<float>("aa", "F32", {2}, {1, 2}), testTensor<float>("b", "F32", {1, 1}, {3})});
  for (size_t i = 0; i < good.size(); ++i)
    for (int c = 0; c < 256; ++c) {
      std::string bytes = good;
      bytes[i] = static_cast<char>(c);
      auto file = parse(bytes);
      if (!file)
        continue;
      uint64_t total = 0;
      for (const TensorInfo &t : file->tensors()) {
        ASSERT_EQ(file->data(t).size(), t.bytes);
        total += t.bytes;
      }
      ASSERT_EQ(total, 12u);
    }
  for (size_t n = 0; n < good.size(); ++n)
    EXPECT_FALSE(parse(good.substr(0, n))) << n;
}

TEST(SafeTensors, TruncatedDataCanBeAllowed) {
  std::string bytes = safetensorsBytes(std::string(kOne), "xxxx");
  auto file = parse(bytes, {.allowTruncated = true});
  ASSERT_TRUE(file) << file.status().str();
  EXPECT_TRUE(file->truncated());
  EXPECT_TRUE(file->data(*file->find("a")).empty());
}

TEST(SafeTensors, HeadersOnlyMapsNoData) {
  TempDir dir;
  writeFile(dir / "m.safetensors", safetensorsBytes(std::string(kOne), "xxxxxxxx"));
  auto file = SafeTensorsFile::open(dir / "m.safetensors", {.headersOnly = true});
  ASSERT_TRUE(file) << file.status().str();
  EXPECT_EQ(file->find("a")->bytes, 8u);
  EXPECT_TRUE(file->data(*file->find("a")).empty());
}

TEST(SafeTensors, RefusesWhatIsNoRegularFile) {
  TempDir dir;
  ASSERT_EQ(mkfifo((dir / "pipe").c_str(), 0600), 0);
  for (const std::string &path :
       {dir.str(), dir / "absent", dir / "pipe", std::string("/dev/zero")}) {
    auto file = SafeTensorsFile::open(path);
    ASSERT_FALSE(file) << path;
    EXPECT_EQ(file.status().diagnostics().front().id, ErrorId::FileNotFound) << path;
  }
}

TEST(SafeTensors, MemoryStaysWithinTheHeader) {
  // Many small records: the reader may take at most 4 times the file and 64 MiB.
  std::string header = "{";
  while (header.size() < 40'000'000)
    header += (header.size() > 1 ? ",\"" : "\"") + std::to_string(header.size()) +
              R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  std::string bytes = safetensorsBytes(header + "}", "");
  header = {};
  TempDir dir;
  writeFile(dir / "m.safetensors", bytes);
  const uint64_t size = bytes.size();
  bytes = {};
  // Measured in a process of its own, whose peak is not that of other tests.
  pid_t child = fork();
  if (child == 0) {
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    bool ok = static_cast<bool>(SafeTensorsFile::open(dir / "m.safetensors"));
    getrusage(RUSAGE_SELF, &after);
    uint64_t grown = static_cast<uint64_t>(after.ru_maxrss - before.ru_maxrss) * 1024;
    _exit(!ok ? 2 : grown <= 4 * size + (64u << 20) ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

// --- directories
// -----------------------------------------------------------------------------------

void writeShards(const TempDir &dir, const std::string &index) {
  writeFile(dir / "one.safetensors", safetensorsBytes({testTensor<float>("a", "F32", {1}, {1})}));
  writeFile(dir / "two.safetensors", safetensorsBytes({testTensor<float>("b", "F32", {1}, {2})}));
  writeFile(dir / "model.safetensors.index.json", index);
}

TEST(Checkpoint, OpensShards) {
  TempDir dir;
  writeShards(
      dir,
      R"({"metadata":{"total_size":8},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  auto checkpoint = Checkpoint::open(dir.str());
  ASSERT_TRUE(checkpoint) << checkpoint.status().str();
  ASSERT_EQ(checkpoint->tensors().size(), 2u);
  float b;
  std::memcpy(&b, checkpoint->data(*checkpoint->find("b")).data(), 4);
  EXPECT_EQ(b, 2);
  EXPECT_EQ(checkpoint->find("c"), nullptr);
}

TEST(Checkpoint, SkipsAByteOrderMarkAsConfigsMayHaveOne) {
  TempDir dir;
  writeShards(dir, "\xef\xbb\xbf"
                   R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  auto checkpoint = Checkpoint::open(dir.str());
  EXPECT_TRUE(checkpoint) << checkpoint.status().str();
}

TEST(Checkpoint, OpensOneFileAndPrefersIt) {
  TempDir dir;
  writeShards(dir, "{");
  writeFile(dir / "model.safetensors", safetensorsBytes({testTensor<float>("w", "F32", {1}, {1})}));
  EXPECT_TRUE(Checkpoint::open(dir.str()));
  EXPECT_TRUE(Checkpoint::open(dir / "one.safetensors"));
}

TEST(Checkpoint, RefusesBadIndexes) {
  struct Case {
    const char *index;
    ErrorId id;
    const char *says;
  } cases[] = {
      {"{", ErrorId::BadIndex, "not valid JSON"},
      {"[]", ErrorId::BadIndex, "list"},
      {"3", ErrorId::BadIndex, "object"},
      {"{}", ErrorId::BadIndex, "weight_map"},
      {R"({"weight_map":3})", ErrorId::BadIndex, "object"},
      {R"({"weight_map":{"a":3}})", ErrorId::BadIndex, "'a' is not a string"},
      {R"({"weight_map":{"a":{}}})", ErrorId::BadIndex, "object in weight_map"},
      {R"({"weight_map":{"a":["one.safetensors"]}})", ErrorId::BadIndex, "list"},
      {R"({"weight_map":{"a":"../one.safetensors"}})", ErrorId::BadIndex, "../one"},
      {R"({"weight_map":{"a":"/etc/passwd"}})", ErrorId::BadIndex, "/etc/passwd"},
      {R"({"weight_map":{"a":""}})", ErrorId::BadIndex, "not the name"},
      {R"({"weight_map":{"a":"one.safetensors\u0000"}})", ErrorId::BadIndex, "not the name"},
      {R"({"weight_map":{"a":"one.safetensors"},"weight_map":{}})", ErrorId::BadIndex, "twice"},
      {R"({"weight_map":{"a":"one.safetensors","a":"two.safetensors","b":"two.safetensors"}})",
       ErrorId::BadIndex, "'a' stands twice"},
      {R"({"weight_map":{"a":"one.safetensors","b":"gone.safetensors"}})", ErrorId::FileNotFound,
       "gone.safetensors"},
      {R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"}})",
       ErrorId::MissingTensor, "'c'"},
      {R"({"weight_map":{"a":"one.safetensors","c":"two.safetensors"}})", ErrorId::MissingTensor,
       "'b'"},
      {R"({"weight_map":{"a":"two.safetensors","b":"two.safetensors"}})", ErrorId::MissingTensor,
       "'a'"},
  };
  for (const Case &c : cases) {
    TempDir dir;
    writeShards(dir, c.index);
    auto checkpoint = Checkpoint::open(dir.str());
    ASSERT_FALSE(checkpoint) << c.index;
    EXPECT_EQ(checkpoint.status().diagnostics().front().id, c.id)
        << c.index << checkpoint.status().str();
    EXPECT_THAT(checkpoint.status().str(), HasSubstr(c.says)) << c.index;
  }
  TempDir dir;
  EXPECT_FALSE(Checkpoint::open(dir.str()));
  EXPECT_FALSE(Checkpoint::open(dir / "absent"));
}

TEST(Checkpoint, RefusesATensorInTwoShards) {
  TempDir dir;
  writeShards(dir, R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  writeFile(dir / "two.safetensors", safetensorsBytes({testTensor<float>("a", "F32", {1}, {1}),
                                                       testTensor<float>("b", "F32", {1}, {2})}));
  auto checkpoint = Checkpoint::open(dir.str());
  ASSERT_FALSE(checkpoint);
  EXPECT_EQ(checkpoint.status().diagnostics().front().id, ErrorId::ExtraTensor);
}

// --- writing
// ---------------------------------------------------------------------------------------

TEST(SafeTensorsWriter, RoundTripsAndLeavesNoTemporaryFile) {
  std::mt19937 random(1);
  TempDir dir;
  std::vector<float> w(24);
  for (float &x : w)
    x = std::uniform_real_distribution<float>()(random);
  std::vector<int32_t> ids = {3, -4};
  auto bytes = [](auto &v) {
    return std::span<const uint8_t>(reinterpret_cast<const uint8_t *>(v.data()),
                                    v.size() * sizeof(v[0]));
  };
  Status status =
      writeSafeTensors(dir / "o.safetensors",
                       {{"quote\"d", TensorType::f32, {2, 3, 4}}, {"ids", TensorType::i32, {2}}},
                       {bytes(w), bytes(ids)});
  ASSERT_TRUE(status) << status.str();
  auto file = SafeTensorsFile::open(dir / "o.safetensors");
  ASSERT_TRUE(file) << file.status().str();
  const TensorInfo *t = file->find("quote\"d");
  ASSERT_TRUE(t);
  EXPECT_EQ(t->offset % 8, 0u);
  EXPECT_EQ(std::memcmp(file->data(*t).data(), w.data(), w.size() * 4), 0);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.str()), {}), 1);
}

TEST(SafeTensorsWriter, WithoutCommitTheOldFileStays) {
  TempDir dir;
  writeFile(dir / "o.safetensors", "old");
  {
    auto writer =
        SafeTensorsWriter::create(dir / "o.safetensors", {{"a", TensorType::f32, {1}}}, 1);
    ASSERT_TRUE(writer) << writer.status().str();
  }
  EXPECT_EQ(std::filesystem::file_size(dir / "o.safetensors"), 3u);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.str()), {}), 1);
}

TEST(SafeTensorsWriter, RefusesDevicesAndMissingDirectories) {
  TempDir dir;
  for (const std::string &path :
       {std::string("/dev/null"), dir.str(), dir / "no/where.safetensors"}) {
    Status status = checkWritable(path);
    ASSERT_FALSE(status) << path;
    EXPECT_EQ(status.diagnostics().front().id, ErrorId::CannotWrite);
  }
}

TEST(SafeTensorsWriter, ReportsAFullDisk) {
  TempDir dir;
  auto writer =
      SafeTensorsWriter::create(dir / "o.safetensors", {{"a", TensorType::u8, {4096}}}, 1);
  ASSERT_TRUE(writer);
  // The limit stands for a full disk: writes past it fail.
  struct rlimit old, small = {100, 100};
  getrlimit(RLIMIT_FSIZE, &old);
  small.rlim_max = old.rlim_max;
  signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &small);
  std::vector<uint8_t> data(4096, 1);
  Status status = writer->write(0, 0, data);
  setrlimit(RLIMIT_FSIZE, &old);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.diagnostics().front().id, ErrorId::CannotWrite);
  EXPECT_THAT(status.str(), HasSubstr("o.safetensors"));
}

} // namespace
