//===- CudnnGraph.h - an operation graph for cuDNN --------------*- C++ -*-===//
// Builds a graph of cuDNN's backend operations, has it planned and runs the plan. Knows tensors and
// operations, nothing of what they are for (CudnnAttention.cpp).
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_KERNELS_CUDNNGRAPH_H
#define MOIRA_RT_CUDA_KERNELS_CUDNNGRAPH_H

#include "../CudnnLibrary.h"

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace moira::rt::cuda {

using CudnnDims = std::array<int64_t, 4>;

/// A tensor of a graph: its number there, and its place among the descriptors.
struct CudnnTensor {
  int64_t id = 0;
  CudnnDims dims{};
};

/// The first step that fails is remembered, and those after it do nothing.
class CudnnGraph {
public:
  explicit CudnnGraph(const CudnnLibrary &library) : library(library) {}

  /// In the device's memory, 16-byte aligned.
  CudnnTensor tensor(cudnnDataType_t type, CudnnDims dims, CudnnDims strides);
  /// Between two operations, never in memory.
  CudnnTensor between(cudnnDataType_t type, CudnnDims dims);
  CudnnTensor between(cudnnDataType_t type, CudnnDims dims, CudnnDims strides);
  /// A float that is given when the plan is run, from the host's memory.
  CudnnTensor scalar();

  /// Each makes `out` of the tensors before it. A dimension of 1 is spread; heads of `b` that are
  /// fewer than those of `a` are shared among them.
  void multiply(CudnnTensor a, CudnnTensor b, CudnnTensor out);
  void apply(cudnnPointwiseMode_t mode, CudnnTensor a, CudnnTensor out);
  void apply(cudnnPointwiseMode_t mode, CudnnTensor a, CudnnTensor b, CudnnTensor out,
             cudnnDataType_t math = CUDNN_DATA_FLOAT);
  /// out = condition ? a : b.
  void select(CudnnTensor condition, CudnnTensor a, CudnnTensor b, CudnnTensor out);
  /// Every element's index along a dimension; of `like` only the shape is used.
  void index(int64_t dimension, CudnnTensor like, CudnnTensor out);
  void reduce(cudnnReduceTensorOp_t how, CudnnTensor a, CudnnTensor out);
  /// The same numbers with other dimensions and strides.
  void reshape(CudnnTensor a, CudnnTensor out);

  /// Chooses what runs the graph. False: cuDNN has nothing that does.
  bool plan(cudnnHandle_t handle);
  size_t workspaceBytes() const { return workspace; }
  /// Enqueues it on the handle's stream. `data`: of every tensor in memory and of every scalar.
  cudnnStatus_t run(cudnnHandle_t handle, std::span<const std::pair<int64_t, const void *>> data,
                    void *workspaceData) const;

private:
  struct Release {
    const CudnnLibrary *library;
    void operator()(void *descriptor) const { library->destroyDescriptor(descriptor); }
  };
  using Descriptor = std::unique_ptr<void, Release>;

  Descriptor make(cudnnBackendDescriptorType_t type) const;
  template <typename Value>
  void set(const Descriptor &to, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
           std::span<const Value> values);
  template <typename Value>
  void set(const Descriptor &to, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
           const Value &value) {
    set(to, name, type, std::span<const Value>(&value, 1));
  }
  void set(const Descriptor &to, cudnnBackendAttributeName_t name, CudnnTensor tensor);
  void finish(const Descriptor &descriptor);
  CudnnTensor add(cudnnDataType_t type, CudnnDims dims, CudnnDims strides, bool isVirtual,
                  bool isByValue);
  /// An element-wise operation without its inputs and its result.
  Descriptor pointwise(cudnnPointwiseMode_t mode, cudnnDataType_t math, int64_t axis = -1);
  void addOperation(Descriptor operation);

  const CudnnLibrary &library;
  cudnnStatus_t status = CUDNN_STATUS_SUCCESS;
  std::vector<Descriptor> tensors;    // by id - 1
  std::vector<Descriptor> operations; // and what they are described by
  std::vector<cudnnBackendDescriptor_t> inOrder;
  Descriptor chosen{nullptr, Release{&library}};
  size_t workspace = 0;
};

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_KERNELS_CUDNNGRAPH_H
