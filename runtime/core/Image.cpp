//===- Image.cpp - a plan's host kernels in memory ------------------------===//
// See Image.h.
//===----------------------------------------------------------------------===//
#include "moira/rt/Image.h"

#include "moira/rt/SafeTensors.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <sstream>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <unistd.h>

namespace moira::rt {

std::string cpuArchitecture() {
  struct utsname name;
  return uname(&name) == 0 ? name.machine : "unknown";
}

const std::vector<std::string> &cpuFeatures() {
  static const std::vector<std::string> features = [] {
    // The kernel's names that differ from LLVM's.
    const std::pair<const char *, const char *> renamed[] = {{"sse4_1", "sse4.1"},
                                                             {"sse4_2", "sse4.2"},
                                                             {"pni", "sse3"},
                                                             {"abm", "lzcnt"},
                                                             {"lahf_lm", "sahf"},
                                                             {"bmi1", "bmi"},
                                                             {"fpu", "x87"},
                                                             {"3dnowprefetch", "prfchw"},
                                                             {"rdrand", "rdrnd"},
                                                             {"lm", "64bit"},
                                                             {"pclmulqdq", "pclmul"},
                                                             {"sha_ni", "sha"},
                                                             {"avx512_vnni", "avx512vnni"},
                                                             {"avx512_bf16", "avx512bf16"},
                                                             {"avx512_fp16", "avx512fp16"},
                                                             {"avx_vnni", "avxvnni"},
                                                             {"asimd", "neon"}};
    std::vector<std::string> list;
    std::ifstream cpuinfo("/proc/cpuinfo");
    for (std::string line; std::getline(cpuinfo, line);) {
      if (line.rfind("flags", 0) != 0 && line.rfind("Features", 0) != 0)
        continue;
      std::istringstream words(line.substr(line.find(':') + 1));
      for (std::string word; words >> word;) {
        for (auto &[kernel, llvm] : renamed)
          if (word == kernel)
            list.push_back(llvm);
        list.push_back(word);
      }
      break;
    }
    std::sort(list.begin(), list.end());
    return list;
  }();
  return features;
}

std::vector<std::string> missingFeatures(std::string_view features) {
  std::vector<std::string> missing;
  while (!features.empty()) {
    size_t comma = std::min(features.find(','), features.size());
    std::string_view word = features.substr(0, comma);
    features.remove_prefix(std::min(comma + 1, features.size()));
    if (word.empty() || word[0] == '-') // the object does not use it
      continue;
    if (word[0] == '+')
      word.remove_prefix(1);
    if (!std::binary_search(cpuFeatures().begin(), cpuFeatures().end(), word))
      missing.emplace_back(word);
  }
  return missing;
}

namespace {

/// `fd` is the file that the object was loaded from. It stays open as long as the object is used:
/// the loader takes an object of the same path for the same object, and the next file would get
/// this one's number.
Expected<void *> loadObject(std::span<const uint8_t> bytes, size_t section, int &fd) {
  auto fail = [&](const std::string &what) {
    return Status(ErrorId::BadRun,
                  format("section %zu, the plan's host kernels, cannot be loaded: %s", section,
                         what.c_str()));
  };
  fd = memfd_create("moira-kernels", MFD_CLOEXEC);
  if (fd < 0)
    return fail(std::strerror(errno));
  for (size_t done = 0; done < bytes.size();) {
    ssize_t n = write(fd, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0)
      return fail(std::strerror(errno));
    done += static_cast<size_t>(n);
  }
  std::string path = format("/proc/self/fd/%d", fd);
  void *handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    const char *error = dlerror();
    return fail(error ? error : "unknown reason");
  }
  return handle;
}

} // namespace

Expected<std::shared_ptr<const HostImages>> HostImages::load(const PlanFile &file) {
  const fb::Plan &plan = file.plan();
  std::shared_ptr<HostImages> images(new HostImages());
  images->handles.assign(plan.sections()->size(), nullptr);
  images->files.assign(plan.sections()->size(), -1);
  images->kernels.assign(plan.kernels()->size(), nullptr);
  Status problems;
  std::string machine = cpuArchitecture();
  for (size_t i = 0; i < plan.sections()->size(); ++i) {
    const fb::Section &section = *plan.sections()->Get(i);
    if (section.kind() != fb::SectionKind::host_object)
      continue;
    std::string_view target = section.target()->string_view();
    std::string_view architecture = target.substr(0, target.find('-'));
    if (architecture != machine) {
      problems.add(ErrorId::PlanTarget,
                   format("the plan's kernels are for %s, this machine is %s; compile the model "
                          "here, or run with --reference",
                          std::string(target).c_str(), machine.c_str()));
      continue;
    }
    std::string list;
    if (section.features())
      for (const std::string &name : missingFeatures(section.features()->string_view()))
        list += (list.empty() ? "" : ", ") + name;
    if (!list.empty()) {
      problems.add(ErrorId::PlanTarget,
                   format("the plan's kernels use instructions that this CPU lacks: %s; compile "
                          "the model here, or run with --reference",
                          list.c_str()));
      continue;
    }
    Expected<void *> handle = loadObject(file.section(i), i, images->files[i]);
    if (!handle) {
      problems.append(handle.takeStatus());
      continue;
    }
    images->handles[i] = *handle;
  }
  if (!problems)
    return problems;
  for (size_t i = 0; i < plan.kernels()->size(); ++i) {
    const fb::Kernel &kernel = *plan.kernels()->Get(i);
    void *handle = images->handles[kernel.section()];
    if (!handle)
      continue;
    images->kernels[i] = dlsym(handle, kernel.name()->c_str());
    if (!images->kernels[i])
      problems.add(ErrorId::BadRun,
                   format("kernel %s is not in section %u of the plan",
                          quoteName(kernel.name()->string_view()).c_str(), kernel.section()));
  }
  if (!problems)
    return problems;
  return std::shared_ptr<const HostImages>(std::move(images));
}

HostImages::~HostImages() {
  for (void *handle : handles)
    if (handle)
      dlclose(handle);
  for (int fd : files)
    if (fd >= 0)
      close(fd);
}

} // namespace moira::rt
