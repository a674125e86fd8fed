//===- Link.cpp - Linking a host image ------------------------------------===//
//
// Runs LLD inside this process. LLD works on files and keeps global state, hence the temporary
// folder and the lock.
//
//===----------------------------------------------------------------------===//
#include "Codegen.h"
#include "lld/Common/CommonLinkerContext.h"
#include "lld/Common/Driver.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/ScopeExit.h"
#include "llvm/Support/CommandLine.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/raw_ostream.h"
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <mutex>
#include <unistd.h>

LLD_HAS_DRIVER(elf)

namespace {
/// LLD resets every llvm::cl option of the process to its default. While this object lives, the
/// options that the command line has set are not registered and so keep their values.
class KeepOptions {
public:
  KeepOptions() {
    llvm::cl::SubCommand &all = llvm::cl::SubCommand::getTopLevel();
    auto isSet = [](llvm::cl::Option *option) { return option->getNumOccurrences() > 0; };
    llvm::copy_if(llvm::make_second_range(all.OptionsMap), std::back_inserter(kept), isSet);
    llvm::copy_if(all.PositionalOpts, std::back_inserter(kept), isSet);
    for (llvm::cl::Option *option : kept)
      option->removeArgument();
  }
  ~KeepOptions() {
    for (llvm::cl::Option *option : kept)
      option->addArgument();
  }

private:
  llvm::SmallVector<llvm::cl::Option *> kept;
};
} // namespace

/// The user's disk is full or not writable, which is nobody's defect.
static llvm::Error noTemporaryFile(const std::string &what) {
  return llvm::createStringError("MOE-0107: " + what +
                                 "; $TMPDIR says where temporary files are made");
}

/// Whether a file of so many bytes could be written here, which is tried; 0 or the error.
static int reserve(const char *path, size_t bytes) {
  int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0)
    return errno;
  int error = posix_fallocate(fd, 0, static_cast<off_t>(bytes));
  close(fd);
  unlink(path);
  return error == EOPNOTSUPP || error == EINVAL ? 0 : error;
}

llvm::Expected<std::string> moira::kernels::linkSharedObject(llvm::StringRef object) {
  static std::mutex mutex;
  std::lock_guard<std::mutex> lock(mutex);

  llvm::SmallString<128> folder;
  if (std::error_code error = llvm::sys::fs::createUniqueDirectory("moira-link", folder))
    return noTemporaryFile("a folder for temporary files cannot be made: " + error.message());
  llvm::scope_exit cleanUp([&] { llvm::sys::fs::remove_directories(folder); });
  llvm::SmallString<128> input(folder), output(folder);
  llvm::sys::path::append(input, "kernels.o");
  llvm::sys::path::append(output, "kernels.so");
  {
    std::error_code error;
    llvm::raw_fd_ostream os(input, error);
    os << object;
    os.close();
    if (os.has_error()) {
      error = os.error();
      os.clear_error();
    }
    if (error)
      return noTemporaryFile(input.str().str() + ": " + error.message());
  }

  // LLD writes through a mapping, where a full disk is a SIGBUS: ask for the room first.
  constexpr size_t kAlignments = 64 << 10;
  if (int error = reserve(output.c_str(), object.size() + kAlignments))
    return noTemporaryFile(output.str().str() + ": " + std::strerror(error));

  // -z defs: an undefined symbol is an error. No build id, no comment of a path: the bytes depend
  // on the object alone.
  const char *arguments[] = {
      "ld.lld",      "-shared",          "--strip-all", "-z",           "defs",
      "-z",          "noexecstack",      "-z",          "relro",        "--build-id=none",
      "--threads=1", "--hash-style=gnu", "-o",          output.c_str(), input.c_str()};
  KeepOptions keepOptions;
  std::string log;
  llvm::raw_string_ostream logStream(log);
  bool linked = lld::elf::link(arguments, logStream, logStream, /*exitEarly=*/false,
                               /*disableOutput=*/false);
  lld::CommonLinkerContext::destroy();
  if (!linked)
    return llvm::createStringError("linking failed: %s", log.c_str());
  auto image = llvm::MemoryBuffer::getFile(output, /*IsText=*/false,
                                           /*RequiresNullTerminator=*/false);
  if (!image)
    return llvm::createStringError(image.getError(), "%s cannot be read", output.c_str());
  return (*image)->getBuffer().str();
}
