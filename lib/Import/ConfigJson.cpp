//===- ConfigJson.cpp - reading hostile JSON files ------------------------===//
#include "moira/Import/ConfigJson.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/StringSet.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/raw_ostream.h"

#include <vector>

using namespace llvm;
using namespace moira;
using rt::ErrorId;
using rt::Status;

namespace {

/// " at line 3, column 7" of byte `offset`.
std::string place(StringRef text, size_t offset) {
  StringRef before = text.take_front(offset);
  size_t lineStart = before.rfind('\n');
  size_t column = lineStart == StringRef::npos ? offset : offset - lineStart - 1;
  return " at line " + std::to_string(before.count('\n') + 1) + ", column " +
         std::to_string(column + 1);
}

/// Looks at brackets and strings only, before the (recursive) parser sees the text. Finds nesting
/// that is too deep and keys that stand twice; the parser would keep the last of them. Returns a
/// message or nothing, and counts the keys of valid JSON.
class Scanner {
public:
  Scanner(StringRef text) : text(text) {}
  size_t keys = 0;

  std::string run() {
    for (size_t i = 0; i < text.size(); ++i) {
      char c = text[i];
      if (c == '"') {
        size_t end = i + 1;
        while (end < text.size() && text[end] != '"')
          end += text[end] == '\\' ? 2 : 1;
        lastString = text.slice(i + 1, std::min(end, text.size()));
        lastStart = i;
        i = end;
      } else if (c == '{' || c == '[') {
        if (scopes.size() == kConfigDepth)
          return "nested deeper than " + std::to_string(kConfigDepth) + " levels" + place(text, i);
        scopes.emplace_back();
      } else if ((c == '}' || c == ']') && !scopes.empty()) {
        scopes.pop_back();
      } else if (c == ':') {
        ++keys;
        if (!scopes.empty() && !scopes.back().insert(lastString).second)
          return "key " + ("'" + toPrintable(lastString) + "'") + " stands twice, again" +
                 place(text, lastStart);
      }
    }
    return "";
  }

  static std::string toPrintable(StringRef name) {
    std::string out;
    for (char c : name.take_front(80))
      out += isPrint(c) ? c : '?';
    return out;
  }

private:
  StringRef text, lastString;
  size_t lastStart = 0;
  std::vector<StringSet<>> scopes;
};

size_t countKeys(const json::Value &value) {
  size_t keys = 0;
  if (const json::Object *object = value.getAsObject()) {
    keys += object->size();
    for (const auto &member : *object)
      keys += countKeys(member.second);
  } else if (const json::Array *array = value.getAsArray()) {
    for (const json::Value &element : *array)
      keys += countKeys(element);
  }
  return keys;
}

/// The parser's "[line:column, byte=n]: message", with columns from 0, in our form.
std::string parserMessage(Error error) {
  std::string text = toString(std::move(error));
  StringRef rest = text, line, column;
  rest.consume_front("[");
  std::tie(line, rest) = rest.split(':');
  std::tie(column, rest) = rest.split(',');
  unsigned number;
  if (column.getAsInteger(10, number))
    return ": " + text;
  return (" at line " + line + ", column " + Twine(number + 1) +
          rest.substr(rest.find("]:") + 1).lower())
      .str();
}

} // namespace

std::optional<json::Object> moira::parseConfig(StringRef text, StringRef name, Status &status) {
  auto fail = [&](const Twine &message) {
    status.add(ErrorId::BadJson, (name + message).str());
    return std::nullopt;
  };
  if (text.size() > kConfigBytes)
    return fail(" has " + Twine(text.size()) + " bytes, more than any config needs (limit " +
                Twine(kConfigBytes) + ")");
  text.consume_front("\xef\xbb\xbf"); // a byte order mark, which the runtime's readers skip too
  Scanner scanner(text);
  if (std::string problem = scanner.run(); !problem.empty())
    return fail(" is not a valid config: " + problem);
  Expected<json::Value> value = json::parse(text);
  if (!value)
    return fail(" is not valid JSON" + parserMessage(value.takeError()));
  json::Object *object = value->getAsObject();
  if (!object)
    return fail(" does not hold a JSON object at line 1, column 1");
  // Keys that differ only in how they are escaped.
  if (countKeys(*value) != scanner.keys)
    return fail(" has a key twice in one object, once written with escapes");
  return std::move(*object);
}

std::optional<json::Object> moira::readConfig(StringRef path, Status &status) {
  sys::fs::file_status stat;
  std::error_code error = sys::fs::status(path, stat);
  if (!error && stat.type() != sys::fs::file_type::regular_file)
    error = std::make_error_code(stat.type() == sys::fs::file_type::directory_file
                                     ? std::errc::is_a_directory
                                     : std::errc::not_supported);
  StringRef name = sys::path::filename(path);
  if (!error && stat.getSize() > kConfigBytes) {
    status.add(ErrorId::BadJson,
               rt::format("%s has %llu bytes, more than any config needs (limit %zu)",
                          name.str().c_str(), (unsigned long long)stat.getSize(), kConfigBytes));
    return std::nullopt;
  }
  auto buffer = error
                    ? ErrorOr<std::unique_ptr<MemoryBuffer>>(error)
                    : MemoryBuffer::getFile(path, /*IsText=*/false,
                                            /*RequiresNullTerminator=*/false, /*IsVolatile=*/true);
  if (!buffer) {
    status.add(ErrorId::FileNotFound,
               "cannot open " + path.str() + ": " + buffer.getError().message());
    return std::nullopt;
  }
  return parseConfig((*buffer)->getBuffer(), name, status);
}

std::string moira::jsonText(const json::Value &value) {
  std::string text;
  if (std::optional<double> number = value.getAsNumber(); number && !value.getAsInteger())
    text = rt::format("%.15g", *number);
  else
    raw_string_ostream(text) << value;
  if (text.size() > 80)
    text = text.substr(0, 77) + "...";
  return text;
}
