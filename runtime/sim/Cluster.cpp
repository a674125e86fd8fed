//===- Cluster.cpp - described clusters -----------------------------------===//
// Rates of devices are those of NVIDIA's data sheets (dense, without sparsity). Efficiencies and
// the time of a launch are what this project's own kernels reached on an H100
// (docs/performance.md); a node's rate is the bus bandwidth that rings of eight devices reach in
// NVIDIA's nccl-tests.
//===----------------------------------------------------------------------===//
#include "moira/rt/Simulate.h"
#include "moira/rt/Suggest.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

namespace moira::rt {
namespace {

constexpr double kGB = 1e9, kTera = 1e12, kGiB = 1024.0 * 1024 * 1024;

const std::vector<SimCluster> &knownClusters() {
  static const std::vector<SimCluster> clusters = [] {
    SimCluster h100;
    h100.name = "h100";
    h100.flopsBf16 = 989 * kTera;
    h100.flopsF32 = 67 * kTera;
    h100.memoryRate = 3350 * kGB;
    h100.memoryBytes = 78 * kGiB;
    h100.productEfficiency = 0.7;
    h100.attentionEfficiency = 0.55;
    h100.memoryEfficiency = 0.9;
    h100.launchSeconds = 3.3e-6;
    h100.hostLinkRate = 55 * kGB;
    h100.hostMemoryRate = 40 * kGB;
    h100.devicesPerNode = 8;
    h100.nodeRate = 370 * kGB;
    h100.networkRate = 48 * kGB;

    SimCluster h200 = h100;
    h200.name = "h200";
    h200.memoryRate = 4800 * kGB;
    h200.memoryBytes = 139 * kGiB;

    SimCluster a100 = h100;
    a100.name = "a100-80gb";
    a100.flopsBf16 = 312 * kTera;
    a100.flopsF32 = 19.5 * kTera;
    a100.memoryRate = 2039 * kGB;
    a100.memoryBytes = 79 * kGiB;
    a100.hostLinkRate = 25 * kGB;
    a100.hostMemoryRate = 20 * kGB;
    a100.nodeRate = 235 * kGB;
    a100.networkRate = 24 * kGB;

    SimCluster small = a100;
    small.name = "a100-40gb";
    small.memoryRate = 1555 * kGB;
    small.memoryBytes = 39 * kGiB;
    return std::vector<SimCluster>{h100, h200, a100, small};
  }();
  return clusters;
}

const SimCluster *find(const std::string &name) {
  for (const SimCluster &cluster : knownClusters())
    if (cluster.name == name)
      return &cluster;
  return nullptr;
}

/// A number of a file: its name there and its place here. Efficiencies are at most 1.
struct Field {
  const char *name;
  double SimCluster::*place;
  double most;
};

constexpr Field kFields[] = {
    {"flops_bf16", &SimCluster::flopsBf16, INFINITY},
    {"flops_f32", &SimCluster::flopsF32, INFINITY},
    {"memory_rate", &SimCluster::memoryRate, INFINITY},
    {"memory_bytes", &SimCluster::memoryBytes, INFINITY},
    {"product_efficiency", &SimCluster::productEfficiency, 1},
    {"attention_efficiency", &SimCluster::attentionEfficiency, 1},
    {"memory_efficiency", &SimCluster::memoryEfficiency, 1},
    {"launch_seconds", &SimCluster::launchSeconds, 1},
    {"host_link_rate", &SimCluster::hostLinkRate, INFINITY},
    {"host_memory_rate", &SimCluster::hostMemoryRate, INFINITY},
    {"node_rate", &SimCluster::nodeRate, INFINITY},
    {"network_rate", &SimCluster::networkRate, INFINITY},
};

std::vector<std::string> fieldNames() {
  std::vector<std::string> names = {"like", "name", "devices_per_node"};
  for (const Field &field : kFields)
    names.push_back(field.name);
  return names;
}

Expected<SimCluster> readCluster(const std::string &path, std::istream &file) {
  nlohmann::json json = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object())
    return Status(ErrorId::BadJson, path + " is no JSON object; docs/simulation.md shows one");
  Status problems;
  std::string like =
      json.value("like", nlohmann::json("h100")).is_string() ? json.value("like", "h100") : "";
  SimCluster cluster;
  if (const SimCluster *base = find(like))
    cluster = *base;
  else
    problems.add(ErrorId::BadConfigValue, path + ": like must be one of " +
                                              SimCluster::knownNames() +
                                              "; the fields that are left out are its");
  cluster.name = path;
  for (const auto &[name, value] : json.items()) {
    auto bad = [&](const std::string &what) {
      problems.add(ErrorId::BadConfigValue,
                   path + ": " + name + " must be " + what + ", not " + value.dump());
    };
    if (name == "like")
      continue;
    if (name == "name") {
      if (value.is_string())
        cluster.name = value.get<std::string>();
      else
        bad("a word");
      continue;
    }
    if (name == "devices_per_node") {
      if (value.is_number_integer() && value.get<int64_t>() >= 1 && value.get<int64_t>() <= 1 << 20)
        cluster.devicesPerNode = value.get<int>();
      else
        bad("a number of devices, 1 or more");
      continue;
    }
    const Field *field = nullptr;
    for (const Field &one : kFields)
      if (name == one.name)
        field = &one;
    if (!field) {
      std::string near = nearestWord(name, fieldNames());
      problems.add(
          ErrorId::UnknownConfigField,
          path + ": unknown field " + name +
              (near.empty() ? "; docs/simulation.md lists them" : "; did you mean " + near + "?"));
      continue;
    }
    double number = value.is_number() ? value.get<double>() : 0;
    if (number > 0 && number <= field->most)
      cluster.*field->place = number;
    else
      bad(field->most == 1 ? "over 0, and 1 at most" : "a number over 0");
  }
  if (!problems)
    return problems;
  return cluster;
}

} // namespace

std::string SimCluster::knownNames() {
  std::string names;
  for (const SimCluster &cluster : knownClusters())
    names += (names.empty() ? "" : ", ") + cluster.name;
  return names;
}

Expected<SimCluster> SimCluster::open(const std::string &nameOrFile) {
  if (const SimCluster *known = find(nameOrFile))
    return *known;
  std::ifstream file(nameOrFile);
  std::error_code error;
  if (!file || std::filesystem::is_directory(nameOrFile, error))
    return Status(ErrorId::FileNotFound,
                  "--cluster=" + nameOrFile + " is no file and none of " + knownNames());
  return readCluster(nameOrFile, file);
}

} // namespace moira::rt
