// How the backward pass lays a head over a block of threads, and what it has in shared memory.
#pragma once

#include <type_traits>

#include "cuda/heads/device.h"
#include "cuda/heads/group.cuh"
#include "cuda/heads/group_stage.cuh"
#include "cuda/heads/parts.cuh"

namespace flash_rwkv::cuda {

// Rows of the state by the warps of a block; lanes share a row, four columns each (eight at the largest size). kElements of
// the state a thread: 32 make good use of what is loaded from shared memory, 8 give more warps where heads are few.
template <int kWidth_, int kWarps_, int kElements_ = 32>
struct BackwardShape {
  static constexpr int kWidth = kWidth_;
  static constexpr int kWarps = kWarps_;
  static constexpr int kElements = kElements_;
  static constexpr int kColumns = kWidth == 256 ? 8 : 4;
  using Layout = TileLayout<kWidth / kColumns, kColumns, kElements / kColumns>;
  static constexpr int kThreads = kWarp * kWarps;
  static constexpr int kWarpRows = Layout::kWarpRows;
  static constexpr int kBlockRows = kWarps * kWarpRows;
  static constexpr bool kOnTensorCores = false;
  static constexpr bool kTakesTurns = false;
  template <int kSets>
  using Vectors = GroupVectors<kWidth, kSets>;
  static constexpr int kRowCellFloats = 0;
  static constexpr int kShares = kWarps;  // of each sum over rows
  // Sixteen warps leave a thread 128 registers, eight 255.
  static constexpr int kBlocksPerProcessor = (kWidth == 256 ? 8 : 16) / kWarps;
  static constexpr int kWideBlocksPerProcessor = kBlocksPerProcessor;
};

// A warp has 16 rows of the gradient, and as many columns of it and of the state, for the tensor cores.
template <int kWidth_>
struct TensorShape {
  static constexpr int kWidth = kWidth_;
  static constexpr int kWarpRows = 16;
  static constexpr int kWarps = kWidth / kWarpRows;
  static constexpr int kElements = kWidth * kWarpRows / kWarp;
  static constexpr int kThreads = kWarp * kWarps;
  static constexpr int kBlockRows = kWidth;
  static constexpr bool kOnTensorCores = true;
  static constexpr bool kTakesTurns = true;
  template <int kSets>
  using Vectors = GroupCells<kWidth>;
  static constexpr int kRowCellFloats = Vectors<2>::kColumnFloats;  // of dy and dsa
  static constexpr int kShares = 1;
  static constexpr int kBlocksPerProcessor = 3;      // leaves a thread 168 registers
  static constexpr int kWideBlocksPerProcessor = 2;  // fit with tokens in fp32, and leave 255
};

template <class T, class Shape>
constexpr int blocks_per_processor() {
  return sizeof(T) == sizeof(float) ? Shape::kWideBlocksPerProcessor : Shape::kBlocksPerProcessor;
}

// Shared memory of a block, in floats. A token is its plain vectors, those that forward saved, the decay, and the
// derivative of the decay by w.
template <class Op, class T, class Shape>
struct BackwardMemory {
  using Stage = std::conditional_t<Shape::kOnTensorCores, BlockStage<Op, T, Shape>, GroupStage<Op, T, Shape>>;
  using Scaled = typename Shape::template Vectors<Op::kSets>;
  using Sums = GroupVectors<Shape::kWidth, Op::kSets>;
  using Factors = PairFactors<Op::kSets, Shape::kWarps>;
  using Preparation = ColumnPreparation<Op, Shape>;
  static constexpr int kToken = kTokenStride<Op, Shape>;
  static constexpr int kStage = Stage::kGroupFloats;
  static constexpr int kTile = Shape::kThreads * Shape::kElements;
  static constexpr int kRoles = 2 * Op::kSets;  // a vector that is read or written with, each

  static constexpr int kKept = kStage;
  static constexpr int kScaled = kKept + kTile;  // column vectors of a group
  // Sums over rows, by warps. A single warp has them take the place of the vectors that they are formed with.
  static constexpr int kSums = Shape::kWarps == 1 ? kScaled : kScaled + Scaled::kFloats;
  static constexpr int kRowCells = kSums + Shape::kShares * Sums::kFloats;
  static constexpr int kSumFloats = Shape::kWarps == 1 ? 0 : Shape::kShares * Sums::kFloats + Shape::kRowCellFloats;
  static constexpr int kDsa = kScaled + Scaled::kFloats + kSumFloats;
  static constexpr int kBonus = kDsa + (Op::kFeedback && !Shape::kOnTensorCores ? kGroup * kDsaStride<Shape> : 0);
  // Factors between columns and between rows: shares of warps, and for each warp its own copy of the whole.
  static constexpr int kColumnShares = kBonus + (Op::kFeedback ? 0 : Shape::kWidth);
  static constexpr int kFactorFloats = Shape::kWarps * Factors::kFloats;
  static constexpr int kRowShares = kColumnShares + kFactorFloats;
  static constexpr int kWholeFactors = kRowShares + kFactorFloats;
  static constexpr int kOwnFactors = Shape::kOnTensorCores ? Factors::kTableFloats : Factors::kFloats;  // of a warp
  // Pointers to the rows of all that is read, then of all that is written.
  static constexpr int kTokenRows = kWholeFactors + Shape::kWarps * kOwnFactors;
  static constexpr int kReadRows = Op::kVectors + 2;  // those that forward saved, and w, besides
  static constexpr int kGradientRows = kTokenRows + kReadRows * int{sizeof(TokenRows) / sizeof(float)};
  static constexpr int kTurn = kGradientRows + (Op::kGradients + 1) * int{sizeof(GradientRows) / sizeof(float)};
  static constexpr int kFloats = kTurn + (Shape::kTakesTurns ? 4 : 0);
  static constexpr int kBytes = kFloats * static_cast<int>(sizeof(float));

  // Devices without background copies do without the memory for them.
  static int bytes() {
    return kBytes + (device_attribute(cudaDevAttrComputeCapabilityMajor) >= 8 ? Stage::kSharedBytes : 0);
  }
};

}  // namespace flash_rwkv::cuda
