# Finds LLVM/MLIR 22. We link only the MLIR and LLVM shared libraries: a static MLIRFoo beside them would
# register every type twice and break isa<>.
find_package(MLIR REQUIRED CONFIG PATHS /usr/lib/llvm-22/lib/cmake/mlir)
if(NOT LLVM_VERSION_MAJOR EQUAL 22)
  message(FATAL_ERROR "Moira needs LLVM and MLIR 22, found ${LLVM_PACKAGE_VERSION}; see scripts/install-deps")
endif()
list(APPEND CMAKE_MODULE_PATH ${MLIR_CMAKE_DIR} ${LLVM_CMAKE_DIR})
include(TableGen)
include(AddLLVM)
include(AddMLIR)
separate_arguments(LLVM_DEFINITIONS_LIST NATIVE_COMMAND ${LLVM_DEFINITIONS})
add_definitions(${LLVM_DEFINITIONS_LIST})
include_directories(SYSTEM ${MLIR_INCLUDE_DIRS} ${LLVM_INCLUDE_DIRS})
include_directories(${CMAKE_SOURCE_DIR}/include ${CMAKE_SOURCE_DIR}/dialects ${CMAKE_BINARY_DIR}/dialects)
link_directories(${LLVM_LIBRARY_DIR})

# moira_add_library(Name SOURCES … [DEPENDS …] [LINK …]): a static library of the compiler. DEPENDS names tablegen targets.
function(moira_add_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS;LINK" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  add_dependencies(${name} MoiraDialectGen ${ARG_DEPENDS})
  target_link_libraries(${name} PUBLIC ${ARG_LINK} MLIR LLVM)
endfunction()
