// Shows that no bytes can crash the safetensors reader or the reader of its index, and that every
// tensor of a file that they accept lies inside it, without holes or overlap.
#include "moira/rt/Checkpoint.h"

#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <string>
#include <unistd.h>

using namespace moira::rt;

namespace {

void require(bool holds, const char *what) {
  if (holds)
    return;
  std::fprintf(stderr, "accepted, but %s\n", what);
  std::abort();
}

void readFile(std::span<const uint8_t> bytes) {
  Expected<SafeTensorsFile> file = SafeTensorsFile::fromBytes(bytes, "input");
  if (!file) {
    require(!file.status().ok(), "failed without a reason");
    require(file.status().str().size() < 16384, "the message is endless");
    return;
  }
  uint64_t total = 0;
  unsigned sum = 0;
  for (const TensorInfo &tensor : file->tensors()) {
    std::span<const uint8_t> data = file->data(tensor);
    require(data.size() == tensor.bytes, "a tensor is not inside the file");
    require(static_cast<uint64_t>(tensor.elements()) * bitsOf(tensor.type) / 8 == tensor.bytes,
            "shape and size disagree");
    for (uint8_t b : data)
      sum += b;
    total += tensor.bytes;
    require(file->find(tensor.name) == &tensor, "a name is not found");
  }
  require(total + 8 <= bytes.size() && sum + 1 != 0, "tensors overlap");
}

/// A directory with this index and one shard of one tensor "a".
void readIndex(std::span<const uint8_t> text) {
  static const std::string directory = [] {
    char pattern[] = "/tmp/moira-fuzz-XXXXXX";
    std::string made = mkdtemp(pattern);
    const std::string header = R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})";
    std::FILE *shard = std::fopen((made + "/s").c_str(), "wb");
    uint64_t length = header.size();
    std::fwrite(&length, 8, 1, shard);
    std::fwrite(header.data(), 1, header.size(), shard);
    std::fputc('x', shard);
    std::fclose(shard);
    return made;
  }();
  int fd = ::open((directory + "/model.safetensors.index.json").c_str(),
                  O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (fd < 0 || write(fd, text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    std::abort();
  close(fd);
  Expected<Checkpoint> checkpoint = Checkpoint::open(directory);
  if (checkpoint)
    require(checkpoint->tensors().size() <= 1, "there are tensors that no shard has");
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  std::span<const uint8_t> bytes(data, size);
  if (size == 0)
    return 0;
  if (data[0] == 'I') {
    readIndex(bytes.subspan(1));
    return 0;
  }
  readFile(bytes);
  // And with the length of the header made right, so that the search gets past it: what follows the
  // last '}' is data.
  size_t end = size;
  while (end > 8 && data[end - 1] != '}')
    --end;
  if (end <= 8)
    return 0;
  std::vector<uint8_t> file(bytes.begin(), bytes.end());
  for (int i = 0; i < 8; ++i)
    file[i] = static_cast<uint8_t>(static_cast<uint64_t>(end - 8) >> (8 * i));
  readFile(file);
  return 0;
}
