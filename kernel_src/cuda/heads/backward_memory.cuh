// How the backward pass lays a head over a block of threads, and what it has in shared memory.
#pragma once

#include "cuda/heads/device.h"
#include "cuda/heads/group.cuh"
#include "cuda/heads/parts.cuh"
#include "cuda/heads/stage.cuh"

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
  static constexpr int kBlockRows = kWarps * Layout::kWarpRows;
  // Sixteen warps leave a thread 128 registers, eight 255.
  static constexpr int kBlocksPerProcessor = (kWidth == 256 ? 8 : 16) / kWarps;
};

// Shared memory of a block, in floats. A token is its plain vectors, those that forward saved, the decay, and the
// derivative of the decay by w.
template <class Op, class T, class Shape>
struct BackwardMemory {
  using Vectors = VectorLoads<T, Op::kVectors, Shape::kWidth, Shape::kThreads>;
  using Saved = VectorLoads<float, 1, Shape::kWidth, Shape::kThreads, true>;
  using Decays = DecayLoads<T, Shape::kWidth, Shape::kThreads>;
  using Scaled = GroupVectors<Shape::kWidth, Op::kSets>;
  using Factors = PairFactors<Op::kSets, Shape::kWarps>;
  using Preparation = ColumnPreparation<Op, Shape>;
  static constexpr int kToken = kTokenStride<Op, Shape>;
  static constexpr int kStage = kGroup * kToken;
  static constexpr int kTile = Shape::kThreads * Shape::kElements;
  static constexpr int kRoles = 2 * Op::kSets;  // a vector that is read or written with, each

  static constexpr int kKept = kStage;
  static constexpr int kScaled = kKept + kTile;  // column vectors of a group
  // Sums over rows, by warps. A single warp has them take the place of the vectors that they are formed with.
  static constexpr int kSums = Shape::kWarps == 1 ? kScaled : kScaled + Scaled::kFloats;
  static constexpr int kDsa = kScaled + Scaled::kFloats + (Shape::kWarps == 1 ? 0 : Shape::kWarps * Scaled::kFloats);
  static constexpr int kBonus = kDsa + (Op::kFeedback ? kGroup * kDsaStride<Shape> : 0);
  // Factors between columns and between rows: shares of warps, and for each warp its own copy of the whole.
  static constexpr int kColumnShares = kBonus + (Op::kFeedback ? 0 : Shape::kWidth);
  static constexpr int kFactorFloats = Shape::kWarps * Factors::kFloats;
  static constexpr int kRowShares = kColumnShares + kFactorFloats;
  static constexpr int kWholeFactors = kRowShares + kFactorFloats;
  // Pointers to the rows of all that is read, then of all that is written.
  static constexpr int kTokenRows = kWholeFactors + kFactorFloats;
  static constexpr int kReadRows = Op::kVectors + 2;  // those that forward saved, and w, besides
  static constexpr int kGradientRows = kTokenRows + kReadRows * int{sizeof(TokenRows) / sizeof(float)};
  // For the preparation of columns, in the place of sums where these do not take that of its results.
  static constexpr int kEnd = kGradientRows + (Op::kGradients + 1) * int{sizeof(GradientRows) / sizeof(float)};
  static constexpr int kScratch = Shape::kWarps == 1 ? kEnd : kSums;
  static constexpr int kFloats = kEnd + (Shape::kWarps == 1 ? Preparation::kFloats : 0);
  static constexpr int kBytes = kFloats * static_cast<int>(sizeof(float));
  static constexpr int kSavedBytes = Op::kSavedVectors > 0 ? Saved::kSharedBytes : 0;
  static constexpr int kBytesInFlight = Vectors::kSharedBytes + kSavedBytes + Decays::kSharedBytes;

  // Devices without background copies do without the memory for them.
  static int bytes() {
    return kBytes + (device_attribute(cudaDevAttrComputeCapabilityMajor) >= 8 ? kBytesInFlight : 0);
  }
};

}  // namespace flash_rwkv::cuda
