// Tile IR to LLVM IR for NVIDIA GPUs. A block of threads runs one instance of the program at a time; each tile is
// spread over the registers of its threads as a Layout says. Only codegen/nvptx includes this.
#pragma once

#include <array>
#include <map>
#include <vector>

#include "codegen/cpu/math.h"
#include "codegen/emit.h"
#include "codegen/nvptx/layout.h"
#include "codegen/nvptx/pipeline.h"
#include "codegen/nvptx/ptx.h"

namespace kerf::codegen::nvptx {

/// Elementwise mathematics on a GPU. exp is ex2.approx.ftz of x log2(e): within (2 + 1.25 |x|) ulp, results below
/// 2^-126 are 0. log and tanh are the polynomials of the CPU, max and min single instructions.
class GpuMath final : public Math {
 public:
  using B = llvm::IRBuilder<>;
  using V = llvm::Value*;
  V exp(B& b, V x) const override;
  V log(B& b, V x) const override;
  V tanh(B& b, V x) const override;
  V max(B& b, V x, V y) const override;
  V min(B& b, V x, V y) const override;
  V widen(B& b, V bits, DType from) const override;
  V narrow(B& b, V x, DType to) const override;

 private:
  cpu::CpuInfo scalar_{.lanes = 1, .registers = 255, .fma = true, .f16c = true, .bf16_dot = false};
};

/// What makes a program's product; neither: mma.sync or multiply-adds, one dot after the other.
struct Engine {
  std::optional<WgmmaPlan> wgmma;
  std::optional<MmaPlan> mma;
  bool pairs = false;  // with neither, packed tiles are read two elements at a time
};

/// Where every kind of tile of a program is held: one layout per set of axes, so that elementwise operations never move
/// data. The result of a dot has the accumulator layout of mma, a tile over some of its axes the same without the
/// others, anything else is blocked with its contiguous axis over neighbouring lanes.
class Layouts {
 public:
  /// With an engine the product's tile is held as its accumulator; for wgmma other tiles alike by every warpgroup.
  Layouts(const ir::Program& p, int warp_bits, const Engine& engine);
  const Layout& of(const std::vector<ir::AxisExtent>& axes) const;
  int warp_bits() const { return warp_bits_; }
  /// The accumulator of a dot with these axes.
  Layout dot(int row, int column, const ir::Type& t) const;
  /// Stand-ins for the axis that an operand of a dot lacks.
  int no_row() const { return axes_; }
  int no_column() const { return axes_ + 1; }

 private:
  Layout make(const std::vector<ir::AxisExtent>& axes) const;
  int axes_, warp_bits_, fast_ = -1;
  int vector_ = 1;  // neighbours along the fast axis in one thread
  bool groups_alike_;
  std::vector<std::pair<std::vector<ir::AxisExtent>, Layout>> dots_;
  mutable std::map<std::vector<std::pair<int, std::int64_t>>, Layout> known_;
};

class Emitter {
 public:
  Emitter(const ir::Program& p, llvm::Module& module, const Schedule& schedule, const Engine& engine);
  /// Adds the kernel and describes it; whether the device has that much shared memory is for the caller to see.
  Code run();
  /// After run: warpgroups that take turns would have waited for each other in what follows the product.
  bool turns_broken() const { return turns_broken_; }

 private:
  using Value = llvm::Value;
  using Registers = std::vector<Value*>;  // by register number of the layout
  struct Subscript {                      // one axis of a tensor, as a tile sees it
    int axis = -1;                        // of the block
    std::int64_t extent = 0;
    Value* start = nullptr;  // first index, i64
    Value* size = nullptr;   // of the axis
    Value* stride = nullptr;
    ir::ValueId indices = -1;  // gather
    bool inside = false;       // nothing lies outside the tensor
  };
  struct View {
    Value* base = nullptr;
    DType dtype = DType::f32;
    std::vector<Subscript> subscripts;
    Value* fill = nullptr;  // in register form
    bool zero_fill = true;
    bool sum = false;    // of a tensor that is read and written
    bool pairs = false;  // lies so that two neighbours can be read at once
  };
  struct Rep {
    Value* number = nullptr;  // block: its number; entry: which kept tile
    Registers registers;      // tile
    View view;                // a load that only dots use, or that is read where it is added
    bool late = false;        // the second of those
  };
  struct Coordinates {           // of this thread in a layout
    std::map<int, Value*> base;  // by axis: the part of the index that lane and warp give, i32
    Value* first_copy = nullptr;
  };
  /// A dot operand in shared memory: [row][k], k contiguous, rows `pitch` bytes apart, zeros outside.
  struct SharedTile {
    Value* base = nullptr;
    std::int64_t rows = 0, k = 0, pitch = 0;
  };

  Value* c32(std::int64_t x) { return b_.getInt32(static_cast<std::uint32_t>(x)); }
  Value* c64(std::int64_t x) { return b_.getInt64(static_cast<std::uint64_t>(x)); }
  Value* to64(Value* x) { return b_.CreateZExt(x, b_.getInt64Ty()); }
  Value* argument(std::int64_t word);
  Value* pointer_argument(std::int64_t word);
  Value* asm_call(llvm::Type* result, const std::string& text, const std::string& constraints,
                  const std::vector<Value*>& args, bool effects);
  /// The same 64 bits, of which LLVM does not know that they are: what is computed from them is not kept from earlier.
  Value* computed_anew(Value* x);
  void barrier();
  Value* axis_size(int axis);
  Value* tile_count(int list);
  /// Instances of the program that fall to this block of threads, one after the other: sets the numbers of their
  /// blocks.
  void for_each_instance(const std::function<void()>& body);
  /// A word of the arguments, or what the device holds at the address in another one. Read once, at the start.
  Value* told_by(std::int64_t word, std::int64_t address_word, DType t);
  Value* block_count(int axis, std::int64_t extent);
  llvm::Type* memory_type(DType t);
  std::string memory_suffix(DType t);
  Value* to_register(Value* raw, DType t);
  Value* to_memory(Value* x, DType t);
  Value* load_global(Value* ptr, DType t, Value* exists, Value* fill, bool constant);
  std::array<Value*, 2> load_pair(Value* ptr, DType t, bool constant);
  void store_global(Value* x, Value* ptr, DType t, Value* condition);
  Value* shared_ptr(Value* byte_offset);
  Value* reserve_shared(std::int64_t bytes);

  const Layout& layout(const ir::Type& t) { return layouts_.of(t.axes); }
  const Coordinates& coordinates(const Layout& l);
  /// Index of the element in a register along an axis, i32.
  Value* index(const Layout& l, int axis, int reg);
  /// Whether register `reg` holds an element of the tile at all: extents are padded to powers of two. Null: it does.
  Value* in_tile(const Layout& l, const std::vector<ir::AxisExtent>& axes, int reg);
  Value* both(Value* x, Value* y) { return !x ? y : !y ? x : b_.CreateAnd(x, y); }
  Registers get(ir::ValueId v, const Layout& want);
  Registers convert(const Registers& from, const Layout& a, const Layout& to, const std::vector<ir::AxisExtent>& axes,
                    DType t);
  Registers make(const ir::Op& op);
  /// Whether a sum adds a product to what a tensor holds: made with one rounding, in the registers of the product.
  bool adds_product(const ir::Op& op) const;
  View tensor_view(const ir::Op& op, std::size_t first_subscript);
  View packed_view(const ir::Op& op, ir::ValueId entry);
  /// How many indices of an axis there are from `first` on, i32: what each register of a sum is compared with, without
  /// an index of its own in 64 bits. Other programs have fewer registers to spare for it than for the indices.
  Value* left_in(const Subscript& s, Value* first);
  /// Byte address of register `reg` and whether it exists.
  Value* address(const View& view, const Layout& l, int reg, const std::map<ir::ValueId, Registers>& indices,
                 Value*& exists);
  /// The same of a tile in the layout of its axes: padding of its layout does not exist.
  Value* element(const View& view, const std::vector<ir::AxisExtent>& axes, int reg,
                 const std::map<ir::ValueId, Registers>& indices, Value*& exists);
  /// Whether neighbours along the contiguous axis, two registers of a thread, may be stored as one: the tile lies
  /// inside the tensor and its rows begin at multiples of so many bytes. Null: never.
  Value* pairs_fit(const View& view, const Layout& l, const Layout& part, int bytes);
  void store_pair(Value* low, Value* high, Value* ptr, DType t, Value* condition);
  /// Whether four lanes hold 32 elements of 2 bytes that follow each other in pairs, as mma leaves them.
  static bool quads_fit(const View& view, const Layout& l);
  std::array<llvm::Value*, 4> turn_quad(std::array<llvm::Value*, 4> words);
  /// Two f32 rounded to bf16 or f16.
  Value* packed_pair(Value* low, Value* high, DType t);
  std::map<ir::ValueId, Registers> gather_indices(const View& view, const Layout& l);
  Registers load(const View& view, const std::vector<ir::AxisExtent>& axes, bool constant);
  Value* load_register(const View& view, const std::vector<ir::AxisExtent>& axes, int reg,
                       const std::map<ir::ValueId, Registers>& indices, bool constant);
  /// Whether a load only adds what a tensor holds to a sum: each element is then read where it is added, so that a tile
  /// of them never stands in registers beside the sum.
  bool loads_late(const ir::Op& op) const;

  struct Range {
    Value *begin = nullptr, *end = nullptr;
  };
  Range turns(const ir::Op& loop);
  Value* list_entry(int list, std::int64_t array, Value* at);
  /// Sets what a loop tells its region about turn i: the number of the block, of the kept tile.
  void enter_turn(const ir::Op& loop, Value* i);
  void region(const ir::Region& r);
  void operation(const ir::Op& op);
  void emit_loop_op(const ir::Op& op);
  void emit_store(const ir::Op& op);
  void emit_reduce(const ir::Op& op);
  void emit_running_sum(const ir::Op& op);
  void emit_dot(const ir::Op& op);
  SharedTile share(ir::ValueId v, int k, int row, std::int64_t rows);
  void multiply(const SharedTile& x, const SharedTile& y, DType t, const Layout& l, int row, int column,
                Registers& acc);

  /// mma.sync m16n8k16: adds the product of fragments a (4 registers) and b (2) to acc[at .. at + 4).
  void add_product(const std::vector<Value*>& fragments, Registers& acc, std::size_t at, DType t);

  // multistage.cpp
  void emit_multistage(const ir::Op& op);
  void copy_step(const Factor& f, Value* at, Value* step);
  Registers multiply_stage(const Registers& acc, Value* rows_at, Value* columns_at);

  // wgmma.cpp: warpgroups of two kinds
  struct Ring {  // stage and parity at hand, i32 in stack slots that LLVM turns into registers
    Value *stage = nullptr, *parity = nullptr;
  };
  void plan_shared_memory();
  void emit_roles();
  Ring make_ring(int parity);
  void advance(const Ring& ring);
  Value* ring_barrier(const Ring& ring, bool empty);
  Value* shared_address(std::int64_t offset);
  void wait_for(Value* barrier, Value* parity);
  void choose_policies();
  void copy_region(const ir::Region& r, const Ring& ring);
  void copy_turn(const Ring& ring);
  void copy_box(const Factor& f, int map, std::int64_t offset, Value* step, const Ring& ring);
  void emit_product(const ir::Op& op);
  Registers multiply_step(const Registers& acc, bool fresh, const Ring& ring, int left_in_flight);
  /// Each register goes through the wait, so that no use of one can move above it.
  Registers wait_with(const Registers& acc, const std::string& text, const std::vector<Value*>& more);
  void release(Value* stage);
  void end_turn();
  void group_barrier();
  bool store_by_box(const ir::Op& op);

  const ir::Program& p_;
  llvm::Module& module_;
  llvm::IRBuilder<> b_;
  Schedule schedule_;
  std::optional<WgmmaPlan> plan_;
  std::optional<MmaPlan> mma_;
  bool pairs_ = false;
  std::int64_t shared_now_ = 0, shared_most_ = 0, staging_at_ = 0, barriers_at_ = 0;
  std::vector<TensorMap> maps_;
  Ring ring_;               // of the warpgroups that multiply
  Value* group_ = nullptr;  // number of this thread's warpgroup
  int store_map_ = -1;
  Value* policies_[2] = {};  // of the L2 cache, for what the product reads as rows and as columns; null: none
  bool in_turn_ = false, turns_broken_ = false;
  GpuMath math_;
  Layouts layouts_;
  int warp_bits_;
  llvm::Function* fn_ = nullptr;
  llvm::GlobalVariable* shared_ = nullptr;
  Value *lane_ = nullptr, *warp_ = nullptr, *thread_ = nullptr;
  std::map<ir::ValueId, Value*> gathers_;  // indices that the dot at hand needs: where they lie in shared memory
  llvm::BasicBlock* setup_ = nullptr;      // runs once; arguments and coordinates are made there
  std::map<std::int64_t, Value*> arguments_;
  std::vector<std::pair<Layout, Coordinates>> coordinates_;
  std::vector<Rep> reps_;
  std::vector<const ir::Op*> defs_;
  std::vector<std::vector<const ir::Op*>> users_;
  Rep& rep(ir::ValueId v) { return reps_[static_cast<std::size_t>(v)]; }
  const ir::Op* def(ir::ValueId v) const { return defs_[static_cast<std::size_t>(v)]; }
};

}  // namespace kerf::codegen::nvptx
