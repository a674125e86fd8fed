//===- Config.cpp - config.json as it is rewritten ------------------------===//
#include "Config.h"

#include "moira/rt/SafeTensors.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <set>
#include <sys/stat.h>
#include <unistd.h>

namespace moira::ckpt {
namespace {

using rt::ErrorId;
using rt::Status;

/// Configs are a few KiB; the parsed form of this many bytes still fits what loading may take.
constexpr uint64_t kConfigLimit = uint64_t(1) << 20;
constexpr int kDepthLimit = 32;

/// Whether the text nests no deeper than any config: the parsed form is walked by recursion.
bool isFlat(std::string_view text) {
  int depth = 0;
  bool inString = false, escaped = false;
  for (char c : text) {
    if (inString) {
      inString = escaped || c != '"';
      escaped = !escaped && c == '\\';
    } else if (c == '"') {
      inString = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kDepthLimit)
        return false;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return true;
}

} // namespace

rt::Expected<std::string> readSmallFile(const std::string &path, uint64_t limit) {
  auto fail = [&](const std::string &why) {
    return Status(ErrorId::FileNotFound, "cannot open " + path + ": " + why);
  };
  int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0)
    return fail(std::strerror(errno));
  struct stat info;
  std::string text;
  Status status;
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    status = fail("not a regular file");
  } else if (static_cast<uint64_t>(info.st_size) > limit) {
    status = Status(ErrorId::BadJson,
                    rt::format("%s has %llu bytes, at most %llu are allowed", path.c_str(),
                               static_cast<unsigned long long>(info.st_size),
                               static_cast<unsigned long long>(limit)));
  } else {
    text.resize(static_cast<size_t>(info.st_size));
    size_t done = 0;
    while (done < text.size()) {
      ssize_t n = ::read(fd, text.data() + done, text.size() - done);
      if (n < 0 && errno == EINTR)
        continue;
      if (n <= 0)
        break;
      done += static_cast<size_t>(n);
    }
    if (done != text.size())
      status = fail("it cannot be read to its end");
  }
  ::close(fd);
  if (!status)
    return status;
  return text;
}

rt::Expected<Config> Config::open(const std::string &path) {
  rt::Expected<std::string> text = readSmallFile(path, kConfigLimit);
  if (!text)
    return text.takeStatus();
  Config config;
  config.path = path;
  config.text = std::move(*text);
  if (!isFlat(config.text))
    return Status(ErrorId::BadJson,
                  rt::format("%s nests deeper than %d levels", path.c_str(), kDepthLimit));
  std::vector<std::set<std::string>> keys;
  std::string twice;
  using Json = nlohmann::ordered_json;
  auto watch = [&](int, Json::parse_event_t event, Json &value) {
    if (event == Json::parse_event_t::object_start)
      keys.emplace_back();
    else if (event == Json::parse_event_t::object_end)
      keys.pop_back();
    else if (event == Json::parse_event_t::key &&
             !keys.back().insert(value.get<std::string>()).second)
      twice = value.get<std::string>();
    return true;
  };
  try {
    config.members = Json::parse(config.text, watch);
  } catch (const Json::exception &error) {
    const auto *syntax = dynamic_cast<const Json::parse_error *>(&error);
    return Status(ErrorId::BadJson, path + " is not valid JSON" +
                                        (syntax ? rt::format(" at byte %zu", syntax->byte) : ""));
  }
  if (!config.members.is_object())
    return Status(ErrorId::BadJson, path + " is not an object");
  if (!twice.empty())
    return Status(ErrorId::BadJson, path + " has the key " + rt::quoteName(twice) + " twice");
  return config;
}

void Config::set(const std::string &name, const nlohmann::ordered_json &value) {
  members[name] = value;
  text = members.dump(2) + "\n";
}

void Config::setType(rt::TensorType type) {
  std::string word = type == rt::TensorType::bf16  ? "bfloat16"
                     : type == rt::TensorType::f16 ? "float16"
                                                   : "float32";
  bool old = members.contains("torch_dtype");
  if (old)
    set("torch_dtype", word);
  if (!old || members.contains("dtype"))
    set("dtype", word);
}

} // namespace moira::ckpt
