//===- TrainingManifest.cpp - manifest.json -------------------------------===//
// Its text, and the rules that a text must keep. See TrainingManifest.h.
//===----------------------------------------------------------------------===//
#include "moira/rt/TrainingManifest.h"

#include "../core/JsonLimits.h"
#include "moira/rt/Box.h"
#include "moira/rt/CallRegistry.h"
#include "moira/rt/PlanFile.h"
#include "moira/rt/SafeTensors.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

namespace moira::rt {
namespace {

using Json = nlohmann::json;

constexpr const char *kFormat = "moira training checkpoint 1";
constexpr size_t kShown = 20;
constexpr size_t kDimensions = 16;
constexpr int64_t kElements = int64_t(1) << 47;

// The file is {"crc32c":"1a2b3c4d","manifest":{…}} and a newline; the checksum is of the inner
// text.
constexpr std::string_view kBefore = "{\"crc32c\":\"", kBetween = "\",\"manifest\":\n",
                           kAfter = "\n}\n";

std::string hex(uint32_t value) { return format("%08x", value); }

bool readHex(std::string_view text, uint32_t &value) {
  value = 0;
  if (text.size() != 8)
    return false;
  for (char c : text) {
    int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    if (digit < 0)
      return false;
    value = value << 4 | uint32_t(digit);
  }
  return true;
}

uint32_t crcOf(std::string_view text) {
  return crc32c({reinterpret_cast<const uint8_t *>(text.data()), text.size()});
}

std::optional<fb::DType> typeNamed(std::string_view name) {
  for (fb::DType type : fb::EnumValuesDType())
    if (name == nameOf(type))
      return type;
  return std::nullopt;
}

/// Reads the parts of a manifest and collects what is wrong with them.
class Reader {
public:
  Reader(const std::string &origin, bool part) : origin(origin), part(part) {}
  Status status;

  void fail(const std::string &what) {
    if (status.diagnostics().size() < kShown)
      status.add(ErrorId::BadCheckpoint, origin + ": " + what);
  }

  /// The object's members are exactly these.
  bool members(const Json &object, const std::string &where,
               std::initializer_list<const char *> names) {
    if (!object.is_object()) {
      fail(where + " is no object");
      return false;
    }
    bool good = true;
    for (const char *name : names)
      if (!object.contains(name)) {
        fail(where + " lacks '" + name + "'");
        good = false;
      }
    for (const auto &item : object.items())
      if (std::none_of(names.begin(), names.end(),
                       [&](const char *name) { return item.key() == name; })) {
        fail(where + " has an unknown member " + quoteName(item.key()));
        good = false;
      }
    return good;
  }
  bool text(const Json &value, const std::string &where, std::string &out) {
    if (!value.is_string()) {
      fail(where + " is no string");
      return false;
    }
    out = value.get<std::string>();
    return true;
  }
  bool number(const Json &value, const std::string &where, uint64_t most, uint64_t &out) {
    if (!value.is_number_unsigned() || value.get<uint64_t>() > most) {
      fail(where + format(" is no whole number up to %llu", (unsigned long long)most));
      return false;
    }
    out = value.get<uint64_t>();
    return true;
  }
  bool numbers(const Json &value, const std::string &where, std::vector<int64_t> &out) {
    if (!value.is_array() || value.size() > kDimensions) {
      fail(where + format(" is no list of at most %zu numbers", kDimensions));
      return false;
    }
    for (const Json &element : value) {
      uint64_t one = 0;
      if (!number(element, where, kElements, one))
        return false;
      out.push_back(static_cast<int64_t>(one));
    }
    return true;
  }
  bool checksum(const Json &value, const std::string &where, uint32_t &out) {
    std::string digits;
    if (!text(value, where, digits))
      return false;
    if (!readHex(digits, out)) {
      fail(where + " is no checksum of 8 hexadecimal digits");
      return false;
    }
    return true;
  }

  bool file(const Json &value, const std::string &where, StoredFile &out) {
    uint64_t most = uint64_t(1) << 62;
    if (!members(value, where, {"name", "bytes", "header_bytes", "header_crc32c"}) ||
        !text(value["name"], where + "'s name", out.name) ||
        !number(value["bytes"], where + "'s size", most, out.bytes) ||
        !number(value["header_bytes"], where + "'s header", out.bytes, out.headerBytes) ||
        !checksum(value["header_crc32c"], where + "'s checksum", out.headerCrc))
      return false;
    // Nothing but a name: no other folder, no way up, nothing hidden.
    bool plain =
        !out.name.empty() && out.name.size() <= 200 && out.name[0] != '.' &&
        std::all_of(out.name.begin(), out.name.end(), [](char c) {
          return std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '.' || c == '_';
        });
    if (!plain)
      fail(where + " " + quoteName(out.name) + " is not the plain name of a file beside it");
    return plain;
  }

  bool box(const Json &value, const StoredTensor &tensor, const std::string &where, size_t files,
           StoredBox &out) {
    uint64_t number64 = 0;
    std::string digits;
    if (!members(value, where, {"file", "offset", "start", "extent", "crc32c"}) ||
        !numbers(value["start"], where, out.start) || !numbers(value["extent"], where, out.extent))
      return false;
    if (files == 0 || !number(value["file"], where + "'s file", files - 1, number64))
      return false;
    out.file = static_cast<uint32_t>(number64);
    if (!number(value["offset"], where + "'s offset", uint64_t(1) << 62, out.offset) ||
        !text(value["crc32c"], where, digits))
      return false;
    size_t rank = tensor.shape.size();
    bool inside = out.start.size() == rank && out.extent.size() == rank;
    for (size_t d = 0; inside && d < rank; ++d)
      inside = out.extent[d] >= 1 && out.extent[d] <= tensor.shape[d] &&
               out.start[d] <= tensor.shape[d] - out.extent[d];
    if (!inside) {
      fail(where + " is no box of shape " + shapeText(tensor.shape));
      return false;
    }
    uint64_t chunks =
        (bytes(tensor, out) + TrainingManifest::kChunkBytes - 1) / TrainingManifest::kChunkBytes;
    if (digits.size() != chunks * 8) {
      fail(where + format(" has %zu bytes of checksums where %llu chunks need 8 each",
                          digits.size(), (unsigned long long)chunks));
      return false;
    }
    out.chunks.resize(chunks);
    for (size_t i = 0; i < chunks; ++i)
      if (!readHex(std::string_view(digits).substr(8 * i, 8), out.chunks[i])) {
        fail(where + " has a checksum that is no number");
        return false;
      }
    return true;
  }

  bool tensor(const Json &value, const std::string &where, size_t files, StoredTensor &out) {
    std::string type;
    if (!members(value, where, {"name", "dtype", "shape", "boxes"}) ||
        !text(value["name"], where + "'s name", out.name) ||
        !text(value["dtype"], where + "'s dtype", type) ||
        !numbers(value["shape"], where + "'s shape", out.shape))
      return false;
    std::string named = "tensor " + quoteName(out.name);
    std::optional<fb::DType> known = typeNamed(type);
    if (!known) {
      fail(named + " has an unknown dtype " + quoteName(type));
      return false;
    }
    out.type = *known;
    int64_t elements = 1;
    for (int64_t d : out.shape) {
      if (d < 1 || elements > kElements / d) {
        fail(named + " has an impossible shape " + shapeText(out.shape));
        return false;
      }
      elements *= d;
    }
    if (!value["boxes"].is_array()) {
      fail(named + " has no list of boxes");
      return false;
    }
    for (const Json &one : value["boxes"])
      if (!box(one, out, "box " + std::to_string(out.boxes.size()) + " of " + named, files,
               out.boxes.emplace_back()))
        return false;
    std::sort(out.boxes.begin(), out.boxes.end(),
              [](const StoredBox &a, const StoredBox &b) { return a.start < b.start; });
    return part || grid(out, named);
  }

  /// The boxes are the cells of a grid, each of them once.
  bool grid(const StoredTensor &tensor, const std::string &named) {
    size_t cells = 1;
    std::vector<std::vector<int64_t>> cuts(tensor.shape.size());
    for (size_t d = 0; d < cuts.size(); ++d) {
      for (const StoredBox &box : tensor.boxes)
        cuts[d].push_back(box.start[d]);
      std::sort(cuts[d].begin(), cuts[d].end());
      cuts[d].erase(std::unique(cuts[d].begin(), cuts[d].end()), cuts[d].end());
      cells = std::min(cells * std::max<size_t>(1, cuts[d].size()), tensor.boxes.size() + 1);
      cuts[d].push_back(tensor.shape[d]);
    }
    bool good = cells == tensor.boxes.size();
    for (size_t i = 0; good && i < tensor.boxes.size(); ++i) {
      const StoredBox &box = tensor.boxes[i];
      good = i == 0 || tensor.boxes[i - 1].start != box.start;
      for (size_t d = 0; good && d < cuts.size(); ++d)
        good =
            cuts[d][0] == 0 && box.start[d] + box.extent[d] ==
                                   *std::upper_bound(cuts[d].begin(), cuts[d].end(), box.start[d]);
    }
    if (!good)
      fail(named + format("'s %zu boxes do not cover its shape %s exactly once",
                          tensor.boxes.size(), shapeText(tensor.shape).c_str()));
    return good;
  }

  /// Boxes fill every file from its header to its end, without holes or overlap.
  void filled(const TrainingManifest &manifest) {
    struct Piece {
      uint64_t offset, bytes;
    };
    std::vector<std::vector<Piece>> pieces(manifest.files.size());
    for (const StoredTensor &tensor : manifest.tensors)
      for (const StoredBox &box : tensor.boxes)
        pieces[box.file].push_back({box.offset, bytes(tensor, box)});
    for (size_t f = 0; f < pieces.size(); ++f) {
      std::sort(pieces[f].begin(), pieces[f].end(),
                [](const Piece &a, const Piece &b) { return a.offset < b.offset; });
      const StoredFile &file = manifest.files[f];
      uint64_t at = file.headerBytes;
      for (const Piece &piece : pieces[f]) {
        if (piece.offset != at)
          break;
        at += piece.bytes;
      }
      if (at != file.bytes || pieces[f].empty())
        fail("file " + quoteName(file.name) +
             format(" of %llu bytes is not filled by its boxes: byte %llu is missing or there "
                    "twice",
                    (unsigned long long)file.bytes, (unsigned long long)at));
    }
  }

  static uint64_t bytes(const StoredTensor &tensor, const StoredBox &box) {
    uint64_t n = bytesOf(tensor.type);
    for (int64_t d : box.extent)
      n *= static_cast<uint64_t>(d);
    return n;
  }

private:
  std::string origin;
  bool part;
};

} // namespace

const StoredTensor *TrainingManifest::find(std::string_view name) const {
  auto it = std::lower_bound(tensors.begin(), tensors.end(), name,
                             [](const StoredTensor &t, std::string_view n) { return t.name < n; });
  return it != tensors.end() && it->name == name ? &*it : nullptr;
}

std::string TrainingManifest::write() const {
  // A line a file and a box, so that people can read it and tools can compare.
  std::string text = "{\"format\":" + Json(kFormat).dump() +
                     format(",\n\"step\":%llu,\n\"seed\":%llu,\n",
                            (unsigned long long)progress.step, (unsigned long long)progress.seed) +
                     "\"plan\":" + Json(progress.planHash).dump() +
                     ",\n\"data\":" + Json(progress.data).dump() + ",\n\"files\":[";
  for (size_t i = 0; i < files.size(); ++i) {
    Json file = {{"name", files[i].name},
                 {"bytes", files[i].bytes},
                 {"header_bytes", files[i].headerBytes},
                 {"header_crc32c", hex(files[i].headerCrc)}};
    text += (i ? ",\n" : "\n") + file.dump();
  }
  text += "],\n\"tensors\":[";
  for (size_t i = 0; i < tensors.size(); ++i) {
    const StoredTensor &tensor = tensors[i];
    text += (i ? ",\n{\"name\":" : "\n{\"name\":") + Json(tensor.name).dump() + ",\"dtype\":\"" +
            nameOf(tensor.type) + "\",\"shape\":" + Json(tensor.shape).dump() + ",\"boxes\":[";
    for (size_t b = 0; b < tensor.boxes.size(); ++b) {
      const StoredBox &box = tensor.boxes[b];
      std::string sums;
      for (uint32_t chunk : box.chunks)
        sums += hex(chunk);
      Json entry = {{"file", box.file},
                    {"offset", box.offset},
                    {"start", box.start},
                    {"extent", box.extent},
                    {"crc32c", sums}};
      text += (b ? ",\n " : "\n ") + entry.dump();
    }
    text += "]}";
  }
  text += "]}";
  return std::string(kBefore) + hex(crcOf(text)) + std::string(kBetween) + text +
         std::string(kAfter);
}

Expected<TrainingManifest> TrainingManifest::read(std::string_view text, const std::string &origin,
                                                  bool part) {
  Reader reader(origin, part);
  auto damaged = [&](const std::string &what) {
    reader.fail(what);
    return std::move(reader.status);
  };
  if (text.size() > kLimit)
    return damaged(
        format("%zu bytes, at most %llu are allowed", text.size(), (unsigned long long)kLimit));
  uint32_t stored = 0;
  if (!text.starts_with(kBefore) || !text.ends_with(kAfter) ||
      text.size() < kBefore.size() + 8 + kBetween.size() + kAfter.size() ||
      !text.substr(kBefore.size() + 8).starts_with(kBetween) ||
      !readHex(text.substr(kBefore.size(), 8), stored))
    return damaged("no manifest of a training checkpoint, or a damaged one");
  std::string_view inner = text.substr(kBefore.size() + 8 + kBetween.size());
  inner.remove_suffix(kAfter.size());
  if (crcOf(inner) != stored)
    return damaged(
        format("damaged: its checksum is %08x, it should be %08x", crcOf(inner), stored));

  // What the parser will allocate stays within a small multiple of the text.
  JsonShape shape = scanJson({reinterpret_cast<const uint8_t *>(inner.data()), inner.size()});
  if (shape.longestString > kJsonStringLimit)
    return damaged("a string of more than a MiB");
  if (shape.brackets > inner.size() / 16 + 1000 || shape.commas > inner.size() / 5 + 1000)
    return damaged("more lists and objects than a manifest has");
  Json json = Json::parse(inner, nullptr, false);
  if (json.is_discarded())
    return damaged("not valid JSON");

  TrainingManifest manifest;
  std::string format_;
  TrainingProgress &progress = manifest.progress;
  if (!reader.members(json, "it", {"format", "step", "seed", "plan", "data", "files", "tensors"}) ||
      !reader.text(json["format"], "the format", format_) ||
      !reader.number(json["step"], "the step", INT64_MAX, progress.step) ||
      !reader.number(json["seed"], "the seed", UINT64_MAX, progress.seed) ||
      !reader.text(json["plan"], "the plan", progress.planHash) ||
      !reader.text(json["data"], "the data's position", progress.data))
    return std::move(reader.status);
  if (format_ != kFormat)
    return damaged("its format is " + quoteName(format_) + ", this version reads " +
                   quoteName(kFormat));
  if (!json["files"].is_array() || !json["tensors"].is_array())
    return damaged("files and tensors are no lists");
  bool good = true;
  std::set<std::string> names;
  for (const Json &value : json["files"]) {
    StoredFile &file = manifest.files.emplace_back();
    good &= reader.file(value, format("file %zu", manifest.files.size() - 1), file);
    if (!names.insert(file.name).second)
      return damaged("two files are called " + quoteName(file.name));
  }
  for (const Json &value : json["tensors"])
    good &= reader.tensor(value, format("tensor %zu", manifest.tensors.size()),
                          manifest.files.size(), manifest.tensors.emplace_back());
  std::sort(manifest.tensors.begin(), manifest.tensors.end(),
            [](const StoredTensor &a, const StoredTensor &b) { return a.name < b.name; });
  for (size_t i = 1; i < manifest.tensors.size(); ++i)
    if (manifest.tensors[i].name == manifest.tensors[i - 1].name)
      return damaged("two tensors are called " + quoteName(manifest.tensors[i].name));
  if (good)
    reader.filled(manifest);
  if (!reader.status)
    return std::move(reader.status);
  return manifest;
}

std::string boxText(const StoredTensor &tensor, const StoredBox &box) {
  if (box.extent == tensor.shape)
    return tensor.name;
  std::string text;
  for (size_t d = 0; d < box.start.size(); ++d)
    text += format("%s%lld:%lld", d ? ", " : "", (long long)box.start[d],
                   (long long)(box.start[d] + box.extent[d]));
  return tensor.name + "[" + text + "]";
}

} // namespace moira::rt
