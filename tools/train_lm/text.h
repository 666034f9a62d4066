// Text as a language model sees it: pieces (a word, a mark or a run of white space) that put together again are the
// text, byte for byte. A piece outside the vocabulary is spelt in bytes, each a token of its own, so every text has a
// probability and bits per byte mean what they say.
#pragma once

#include <kerf/error.h>

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace train_lm {

/// Length of the first piece of a text that is not empty: a run of letters, digits and bytes of other alphabets, or one
/// mark, either with one space in front; or a run of white space.
inline std::size_t piece_length(std::string_view text) {
  const auto is_space = [](unsigned char b) { return std::isspace(b) != 0; };
  const auto is_word = [](unsigned char b) { return std::isalnum(b) || b == '_' || b >= 0x80; };
  std::size_t at = text[0] == ' ' && text.size() > 1 && !is_space(text[1]) ? 1 : 0;
  const bool space = is_space(text[at]), word = is_word(text[at]);
  do ++at;
  while (at < text.size() && ((space && is_space(text[at])) || (word && is_word(text[at]))));
  return at;
}

/// All text under the paths: whole files in a fixed order. In folders, hidden entries and files with a zero byte are
/// left out.
inline std::vector<std::string> read_texts(const std::vector<std::string>& paths) {
  namespace fs = std::filesystem;
  std::vector<std::string> texts;
  const auto add = [&](const fs::path& path, bool named) {
    std::ifstream in(path, std::ios::binary);
    std::string text{std::istreambuf_iterator<char>(in), {}};
    const bool readable = !in.bad() && fs::is_regular_file(path), binary = text.find('\0') != std::string::npos;
    if (named && !readable) throw kerf::UsageError("--text: cannot read " + path.string());
    if (named && binary) throw kerf::UsageError("--text: " + path.string() + " holds zero bytes, so it is no text");
    if (readable && !binary && !text.empty()) texts.push_back(std::move(text));
  };
  for (const fs::path path : paths) {
    if (!fs::is_directory(path)) {
      add(path, true);
      continue;
    }
    std::vector<fs::path> files;
    fs::recursive_directory_iterator it(path, fs::directory_options::skip_permission_denied), end;
    for (; it != end; ++it) {
      if (it->path().filename().string().starts_with('.'))
        it.disable_recursion_pending();
      else if (it->is_regular_file())
        files.push_back(it->path());
    }
    std::sort(files.begin(), files.end());
    for (const fs::path& file : files) add(file, false);
  }
  return texts;
}

/// Tokens: the 256 bytes, `start` (what stands before a text), then the pieces.
class Vocabulary {
 public:
  static constexpr std::int32_t start = 256;

  Vocabulary() = default;
  /// The most frequent pieces of the texts, at most `limit` tokens in all. A piece seen once is left to be spelt: that
  /// is how the model learns to spell what it will meet later.
  Vocabulary(const std::vector<std::string_view>& texts, std::int64_t limit) {
    std::unordered_map<std::string_view, std::int64_t> counts;
    for (std::string_view text : texts)
      for (std::size_t n; !text.empty(); text.remove_prefix(n)) ++counts[text.substr(0, n = piece_length(text))];
    std::vector<std::pair<std::int64_t, std::string_view>> pieces;
    for (const auto& [piece, count] : counts)
      if (count > 1 && piece.size() > 1) pieces.emplace_back(-count, piece);
    std::sort(pieces.begin(), pieces.end());
    pieces.resize(std::min(pieces.size(), static_cast<std::size_t>(limit - start - 1)));

    for (int b = 0; b < 256; ++b) texts_.emplace_back(1, static_cast<char>(b));
    texts_.emplace_back();
    for (const auto& [count, piece] : pieces) {
      ids_.emplace(piece, static_cast<std::int32_t>(texts_.size()));
      texts_.emplace_back(piece);
    }
  }

  std::int64_t size() const { return static_cast<std::int64_t>(texts_.size()); }
  const std::string& text(std::int32_t token) const { return texts_[static_cast<std::size_t>(token)]; }
  std::int64_t bytes(std::int32_t token) const { return static_cast<std::int64_t>(text(token).size()); }
  /// UTF-8 characters that begin in the token.
  std::int64_t characters(std::int32_t token) const {
    return std::ranges::count_if(text(token), [](unsigned char b) { return (b & 0xc0) != 0x80; });
  }

  void append(std::string_view text, std::vector<std::int32_t>& tokens) const {
    for (std::size_t n; !text.empty(); text.remove_prefix(n)) {
      const std::string_view piece = text.substr(0, n = piece_length(text));
      if (const auto it = ids_.find(std::string(piece)); it != ids_.end())
        tokens.push_back(it->second);
      else
        for (unsigned char b : piece) tokens.push_back(b);
    }
  }

 private:
  std::vector<std::string> texts_;
  std::unordered_map<std::string, std::int32_t> ids_;
};

/// The first nine tenths of every text to learn from, the rest to be judged by.
struct Corpus {
  Vocabulary vocabulary;
  std::vector<std::int32_t> train, held_out;
  std::int64_t bytes = 0, texts = 0;
};

inline Corpus make_corpus(const std::vector<std::string>& texts, std::int64_t vocabulary_limit) {
  Corpus corpus;
  std::vector<std::string_view> heads, tails;
  for (std::string_view text : texts) {
    std::size_t cut = text.rfind('\n', text.size() * 9 / 10);  // whole lines
    cut = cut == std::string_view::npos ? text.size() : cut + 1;
    heads.push_back(text.substr(0, cut));
    tails.push_back(text.substr(cut));
    corpus.bytes += static_cast<std::int64_t>(text.size());
  }
  corpus.texts = static_cast<std::int64_t>(texts.size());
  corpus.vocabulary = Vocabulary(heads, vocabulary_limit);
  for (std::string_view head : heads) corpus.vocabulary.append(head, corpus.train);
  for (std::string_view tail : tails) corpus.vocabulary.append(tail, corpus.held_out);
  return corpus;
}

}  // namespace train_lm
