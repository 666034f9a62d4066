// From the bitmap of kept tiles to the lists that the backward walks, in a fixed order, by steps that depend on sizes
// alone. Tiles are numbered column by column, in a column by rows, so the number of a tile is a sum of counts:
//
//   rank_columns   how many tiles of its column lie above each tile, and how many each column has
//   rank_rows      how many tiles of its row lie left of each tile
//   begin_columns  the sum of the counts of the columns before
//   cut_ranges     the vocabulary in ranges whose tiles fit the workspace: the column that begins with tile t belongs
//                  to range t / quota, so a range has at most quota - 1 tiles and one column more
//   begin_rows, begin_list, list_selected   the list of one range
//
// A side that is not filtered uses every tile; then every tile is made, and the other side walks those it keeps.
#include <limits>

#include "lib/kernels/kernels.h"

namespace kerf::kernels {

namespace {

/// The rows of blocks that hold a row with a label.
Tile row_blocks(ProgramBuilder& p, Axis N, std::int64_t block_n) { return (p.size(N) + (block_n - 1)) / block_n; }

/// Sums of `count(index)` over the indices of A below those of q, a block of extent 256 with another axis.
template <class F>
Tile sum_before(ProgramBuilder& p, Axis A, Axis Q, Block q, const F& count) {
  Tile first = q.number() * 256;
  Tile before = p.loop(A, 256, p.size(A) * 0, [&](Block a, Tile sum) {
    return sum + reduce_sum(where(a.index() < first, count(a.index()), 0), A);
  });
  Tile own = where(q.index() < p.size(A), count(q.index()), 0);
  return before + running_sum(own, Q) - own;
}

}  // namespace

Program rank_columns(Sides sides, std::int64_t block_n) {
  ProgramBuilder p("rank_columns");
  Axis B = p.axis("B"), R = p.axis("R"), N = p.axis("N");
  Tensor keep = p.input("keep", i32, {B, R}), left_out = p.input("left_out", f32, {B, R});
  Tensor item_rank = p.output("item_rank", i32, {B, R}), item_count = p.output("item_count", i64, {B});
  Tensor column_rank = p.output("column_rank", i32, {B, R}), column_count = p.output("column_count", i64, {B});
  Tensor kept_count = p.output("kept_count", i64, {B}), lost = p.output("lost", f32, {B});
  Block b = p.parallel(B, 8);
  Tile none = full(b, 0, i64), rows = row_blocks(p, N, block_n);
  auto [items, columns, kept, mass] =
      p.loop(R, 32, carry(none, none, none, zeros(b)), [&](Block r, Tile items, Tile columns, Tile kept, Tile mass) {
        Tile one = cast(load(keep, b, r), i64), all = where(r.index() < rows, 1, full(b, r, 0, i64));
        Tile item = sides.e && sides.c ? one : all, column = sides.c ? one : all;
        const auto rank = [&](Tensor to, Tile before, Tile x) {
          store(to, b, r, cast(before + running_sum(x, R) - x, i32));
          return before + reduce_sum(x, R);
        };
        return carry(rank(item_rank, items, item), rank(column_rank, columns, column), kept + reduce_sum(one, R),
                     mass + reduce_sum(load(left_out, b, r), R));
      });
  store(item_count, b, items);
  store(column_count, b, columns);
  store(kept_count, b, kept);
  store(lost, b, mass);
  return p.finish();
}

Program rank_rows(Sides sides, std::int64_t block_n) {
  ProgramBuilder p("rank_rows");
  Axis B = p.axis("B"), Q = p.axis("Q"), R = p.axis("R"), N = p.axis("N");
  Tensor keep = p.input("keep", i32, {B, R}), row_rank = p.output("row_rank", i32, {Q, R});
  Block r = p.parallel(R, 4);
  Tile all = where(r.index() < row_blocks(p, N, block_n), 1, full(r, 0, i32));
  Tile count = p.loop(B, 64, full(r, 0, i32), [&](Block b, Tile before) {
    Tile one = sides.e ? load(keep, b, r) : where(b.in_bounds(), all, 0);
    store(row_rank, b.index(), r, before + running_sum(one, B) - one);
    return before + reduce_sum(one, B);
  });
  store(row_rank, p.size(B), r, count);
  return p.finish();
}

Program begin_columns() {
  ProgramBuilder p("begin_columns");
  Axis B = p.axis("B"), Q = p.axis("Q");
  Tensor count = p.input("count", i64, {B}), begin = p.output("begin", i64, {Q});
  Block q = p.parallel(Q, 256);
  store(begin, q, sum_before(p, B, Q, q, [&](Tile i) { return load(count, i); }));
  return p.finish();
}

Program cut_ranges() {
  ProgramBuilder p("cut_ranges");
  Axis Q = p.axis("Q"), I = p.axis("I"), K = p.axis("K"), quota = p.axis("quota");
  Tensor begin = p.input("begin", i64, {Q}), valid = p.input("valid", i64, {});
  Tensor first = p.output("first", i64, {I}), range_rows = p.output("range_rows", i64, {K});
  Block i = p.parallel(I, 16);
  Tile none = full(i, 0, i64), most = p.size(quota);
  // A column belongs before range i if it begins before tile i quota; the last entry of `begin` is no column.
  const auto columns_before = [&](Tile range) {
    return p.loop(Q, 256, none, [&](Block q, Tile sum) {
      Tile before = load(begin, q) < range * most && q.index() < p.size(Q) - 1;
      return sum + reduce_sum(where(before, 1, full(q, 0, i64)), Q);
    });
  };
  Tile here = columns_before(i.index()), next = columns_before(i.index() + 1);
  store(first, i, here);
  store(range_rows, i.index(), where(load(begin, next) > load(begin, here), load(valid), none));
  return p.finish();
}

Program begin_rows() {
  ProgramBuilder p("begin_rows");
  Axis Q = p.axis("Q"), R = p.axis("R"), A = p.axis("A"), first = p.axis("first"), last = p.axis("last");
  Tensor row_rank = p.input("row_rank", i32, {Q, R}), row_begin = p.output("row_begin", i32, {A});
  Block a = p.parallel(A, 256);
  Tile begin = sum_before(p, R, A, a, [&](Tile r) {
    return cast(load(row_rank, p.size(last), r) - load(row_rank, p.size(first), r), i64);
  });
  store(row_begin, a, cast(begin, i32));
  return p.finish();
}

Program begin_list() {
  ProgramBuilder p("begin_list");
  Axis Q = p.axis("Q"), first = p.axis("first"), last = p.axis("last"), one = p.axis("one", 1);
  Tensor item_begin = p.input("item_begin", i64, {Q}), begin = p.input("begin", i64, {Q});
  Tensor column_begin = p.output("column_begin", i32, {Q}), count = p.output("count", i32, {one});
  Block q = p.parallel(Q, 256);
  Tile column = min(max(q.index(), p.size(first)), p.size(last));
  store(column_begin, q, cast(load(begin, column) - load(begin, p.size(first)), i32));
  Tile all = load(item_begin, p.size(last)) - load(item_begin, p.size(first));
  store(count, q.index(), cast(full(q, 0, i64) + all, i32));  // by one: the others' index lies outside
  return p.finish();
}

Program list_selected(Sides sides, std::int64_t block_n) {
  ProgramBuilder p("list_selected");
  Axis B = p.axis("B"), Q = p.axis("Q"), R = p.axis("R"), A = p.axis("A"), K = p.axis("K"), N = p.axis("N");
  Axis first_axis = p.axis("first"), last_axis = p.axis("last");
  Tensor keep = p.input("keep", i32, {B, R}), row_begin = p.input("row_begin", i32, {A});
  Tensor item_rank = p.input("item_rank", i32, {B, R}), item_begin = p.input("item_begin", i64, {Q});
  Tensor column_rank = p.input("column_rank", i32, {B, R}), begin = p.input("begin", i64, {Q});
  Tensor row_rank = p.input("row_rank", i32, {Q, R});
  Tensor row = p.output("row", i32, {K}), column = p.output("column", i32, {K});
  Tensor row_items = p.output("row_items", i32, {K}), column_items = p.output("column_items", i32, {K});
  Tensor item_piece = p.output("item_piece", i32, {K});

  Block b = p.parallel(B, 16), r = p.parallel(R, 32);
  Tile first = p.size(first_axis), here = b.index() >= first && b.index() < p.size(last_axis);
  Tile one = here && load(keep, b, r) != 0, all = here && r.index() < row_blocks(p, N, block_n);
  Tile is_item = sides.e && sides.c ? one : all, in_row = sides.e ? one : all, in_column = sides.c ? one : all;
  // From the beginning of the range.
  const auto since = [&](Tensor begin) { return load(begin, b.index()) - load(begin, first); };
  Tile item = where(is_item, since(item_begin) + cast(load(item_rank, b, r), i64), -1);
  store(row, item, cast(r.index() + full(b, r, 0, i64), i32));
  store(column, item, cast(b.index() + full(b, r, 0, i64), i32));
  store(item_piece, item, full(b, r, 0, i32));  // until place_items knows better
  Tile left = load(row_rank, b.index(), r) - load(row_rank, first, r) + load(row_begin, r.index());
  store(row_items, where(in_row, left, -1), cast(item, i32));
  store(column_items, where(in_column, since(begin) + cast(load(column_rank, b, r), i64), -1), cast(item, i32));
  return p.finish();
}

namespace {

/// Pieces of a row have this many tiles, the last fewer: all of them over the size of `most`.
Tile piece_length(ProgramBuilder& p, Axis most, Tile tiles) {
  return max((tiles + p.size(most) - 1) / p.size(most), 1);
}

}  // namespace

Program cut_rows(std::int64_t block_n) {
  ProgramBuilder p("cut_rows");
  Axis most = p.axis("most"), R = p.axis("R"), A = p.axis("A"), S = p.axis("S"), above_axis = p.axis("R2");
  Axis one = p.axis("one", 1);
  Tensor row_begin = p.input("row_begin", i32, {A});
  Tensor start = p.output("start", i32, {most, R}), begin = p.output("begin", i32, {S});
  Tensor piece_begin = p.output("piece_begin", i32, {A}), piece_items = p.output("piece_items", i32, {S});
  Tensor piece_row = p.output("piece_row", i32, {S}), rows = p.output("rows", i64, {one});
  Tensor piece_count = p.output("count", i32, {one});
  Block s = p.parallel(most, 8), r = p.parallel(R, 16);
  Tile all = cast(load(row_begin, p.size(R)), i64), length = piece_length(p, most, all);
  const auto tiles = [&](Tile row) { return cast(load(row_begin, row + 1) - load(row_begin, row), i64); };
  // Long pieces come first, since blocks of threads that take turns are done together if what comes last is short:
  // whole ones, first pieces of all rows before second ones, then what is left of each row, by its length.
  Tile none = full(s, r, 0, i64), no_row = full(r, 0, i64), own = tiles(r.index());
  Tile own_whole = own / length, own_left = own - own_whole * length;
  // Of all rows: whole pieces before piece s of row r, and all of them; rows with more left, and how much; pieces of
  // rows above r.
  auto [whole, all_whole, longer, longer_items, of_above] = p.loop(
      above_axis, 16, carry(none, no_row, no_row, no_row, no_row),
      [&](Block r2, Tile whole, Tile all_whole, Tile longer, Tile longer_items, Tile of_above) {
        Tile count = where(r2.in_bounds(), tiles(r2.index()), 0), above = r2.index() < r.index();
        Tile wholes = count / length, left = count - wholes * length;
        Tile more = left > own_left || (left == own_left && above),
             one = where(more && left > 0, 1, full(r2, r, 0, i64));
        const auto add = [&](Tile sum, Tile x) { return sum + reduce_sum(x, above_axis); };
        return carry(add(whole, min(wholes, s.index()) + where(above && wholes > s.index(), 1, full(r2, r, 0, i64))),
                     add(all_whole, wholes + full(r2, r, 0, i64)), add(longer, one), add(longer_items, one * left),
                     add(of_above, where(above, wholes + where(left > 0, 1, full(r2, 0, i64)), 0)));
      });
  Tile of_row = own_whole + where(own_left > 0, 1, no_row), exists = of_row > s.index(),
       is_whole = own_whole > s.index();
  Tile number = where(is_whole, whole, all_whole + longer);
  Tile items = where(is_whole, whole * length, all_whole * length + longer_items);
  store(start, s, r, cast(items, i32));
  store(begin, where(exists, number, -1), cast(items, i32));
  store(piece_row, where(exists, number, -1), cast(r.index() + none, i32));
  store(piece_items, where(exists, of_above + s.index(), -1), cast(number, i32));
  Tile first = s.index() == 0;
  store(piece_begin, where(first, r.index() + none, -1), cast(of_above, i32));
  // The last row's first piece tells how many there are.
  Tile last = first && r.index() == p.size(R) - 1, total = of_above + of_row;
  store(piece_begin, where(last, p.size(R), -1), cast(total, i32));
  store(begin, where(last, total, -1), cast(none + all, i32));
  store(rows, where(last, 0, none - 1), total * block_n);
  store(piece_count, where(last, 0, none - 1), cast(total, i32));
  return p.finish();
}

Program place_items() {
  ProgramBuilder p("place_items");
  Axis K = p.axis("K"), most = p.axis("most"), R = p.axis("R"), A = p.axis("A");
  Tensor row_begin = p.input("row_begin", i32, {A}), row_items = p.input("row_items", i32, {K});
  Tensor row = p.input("row", i32, {K}), start = p.input("start", i32, {most, R});
  Axis S = p.axis("S");
  Tensor piece_begin = p.input("piece_begin", i32, {A}), piece_items = p.input("piece_items", i32, {S});
  Tensor items = p.output("items", i32, {K}), item_piece = p.output("item_piece", i32, {K});
  Block k = p.parallel(K, 256);
  Tile all = cast(load(row_begin, p.size(R)), i64), length = piece_length(p, most, all), in = k.index() < all;
  Tile item = load(row_items, k), r = where(in, load(row, item), -1);
  Tile nth = k.index() - cast(load(row_begin, r), i64), piece = nth / length;
  store(items, where(in, cast(load(start, piece, r), i64) + nth - piece * length, -1), item);
  store(item_piece, where(in, item, -1), load(piece_items, cast(load(piece_begin, r), i64) + piece));
  return p.finish();
}

Program count_up() {
  ProgramBuilder p("count_up");
  Axis S = p.axis("S");
  Tensor items = p.output("items", i32, {S});
  Block s = p.parallel(S, 256);
  store(items, s, cast(s.index(), i32));
  return p.finish();
}

Program sum_pieces(Shape s, Blocks b, bool from_sum) {
  ProgramBuilder p(from_sum ? "sum_pieces_from_sum" : "sum_pieces");
  Axis N = p.axis("N"), M = p.axis("M"), D = p.axis("D", s.hidden);
  TileList pieces = p.tile_list("pieces", N, b.n, M, b.n);
  Tensor part = p.input("part", f32, {M, D});
  Tensor sum = from_sum ? p.inout("sum", f32, {N, D}) : p.output("sum", f32, {N, D});
  Block n = p.parallel(N, b.n), d = p.parallel(D, b.d);
  Tile inside = n.index() - n.number() * b.n;
  Tile total = p.loop(pieces.in_row(n), from_sum ? load(sum, n, d) : zeros(n, d),
                      [&](Kept, Block m, Tile acc) { return acc + load(part, m.number() * b.n + inside, d); });
  store(sum, n, d, total);
  return p.finish();
}

Program count_kept(std::int64_t block_n) {
  ProgramBuilder p("count_kept");
  Axis B = p.axis("B"), one = p.axis("one", 1);
  Tensor count = p.input("kept_count", i64, {B}), lost = p.input("lost", f32, {B}), valid = p.input("valid", i64, {});
  Tensor kept = p.output("kept", i64, {one}), tiles = p.output("tiles", i64, {one});
  Tensor left_out = p.output("left_out", f32, {one});
  Block at = p.parallel(one, 1);
  auto [sum, mass] = p.loop(B, 256, carry(full(at, 0, i64), zeros(at)), [&](Block b, Tile sum, Tile mass) {
    return carry(sum + reduce_sum(load(count, b), B), mass + reduce_sum(load(lost, b), B));
  });
  store(kept, at, sum);
  store(tiles, at, (load(valid) + (block_n - 1)) / block_n * p.size(B));
  store(left_out, at, mass / cast(max(load(valid), 1), f32));
  return p.finish();
}

Program keep_all() {
  ProgramBuilder p("keep_all");
  Axis one = p.axis("one", 1);
  Tensor kept = p.output("kept", i64, {one}), left_out = p.output("left_out", f32, {one});
  Block at = p.parallel(one, 1);
  store(kept, at, full(at, every_tile, i64));
  store(left_out, at, zeros(at));
  return p.finish();
}

Program forget_masses() {
  ProgramBuilder p("forget_masses");
  Axis B = p.axis("B"), P = p.axis("P");
  Tensor block_lse = p.output("block_lse", f32, {B, P});
  Block b = p.parallel(B, 4), n = p.parallel(P, 256);
  store(block_lse, b, n, full(b, n, std::numeric_limits<double>::quiet_NaN()));
  return p.finish();
}

Program place_targets(std::int64_t vocabulary) {
  ProgramBuilder p("place_targets");
  Axis P = p.axis("P"), V = p.axis("V", vocabulary);
  Tensor place = p.input("place", i32, {V}), target = p.inout("target", i32, {P});
  Block n = p.parallel(P, 256);
  store(target, n, load(place, load(target, n, fill(-1)), fill(-1)));
  return p.finish();
}

Program shift_targets(std::int64_t tokens) {
  ProgramBuilder p("shift_targets");
  Axis P = p.axis("P"), first = p.axis("first");
  Tensor target = p.input("target", i32, {P}), shifted = p.output("shifted", i32, {P});
  Block n = p.parallel(P, 256);
  Tile y = cast(load(target, n, fill(-1)), i64) - p.size(first);
  store(shifted, n, cast(where(y >= 0 && y < tokens, y, -1), i32));
  return p.finish();
}

Program sum_rows(Shape s, std::int64_t block_n, std::int64_t block_d) {
  ProgramBuilder p("sum_rows");
  Axis N = p.axis("N"), S = p.axis("S"), D = p.axis("D", s.hidden);
  Tensor e = p.input("e", s.dtype, {N, D}), sum = p.output("sum", f32, {S, D});
  Block at = p.parallel(S, 1), d = p.parallel(D, block_d);
  store(sum, at, d, p.loop(part(N, at, block_n), 1, full(at, d, 0), [&](Block n, Tile acc) {
    return acc + reduce_sum(cast(load(e, n, d), f32), N);
  }));
  return p.finish();
}

Program score_rows(Shape s, std::int64_t block_v, std::int64_t block_d) {
  ProgramBuilder p("score_rows");
  Axis V = p.axis("V", s.vocabulary), D = p.axis("D", s.hidden), S = p.axis("S");
  Tensor c = p.input("c", s.dtype, {V, D}), sum = p.input("sum", f32, {S, D}), score = p.output("score", f32, {V});
  Block v = p.parallel(V, block_v);
  store(score, v, p.loop(D, block_d, zeros(v), [&](Block d, Tile acc) {
    Tile mean = p.loop(S, 1, zeros(d), [&](Block at, Tile x) { return x + reduce_sum(load(sum, at, d), S); });
    return acc + reduce_sum(cast(load(c, v, d), f32) * mean, D);
  }));
  return p.finish();
}

}  // namespace kerf::kernels
