#include "tools/train_lm/text.h"

#include <doctest/doctest.h>

#include <random>

using namespace train_lm;

namespace {
std::string decode(const Vocabulary& v, const std::vector<std::int32_t>& tokens) {
  std::string text;
  for (std::int32_t t : tokens) text += v.text(t);
  return text;
}
}  // namespace

TEST_CASE("train_lm: tokens put together are the text, whatever its bytes and however small the vocabulary") {
  std::mt19937 random(3);
  std::string text = "int main() { return 0; }\n\n    int  x_1 = a[i+1];\tgrüße, «naïve» 日本語\r\n";
  for (int i = 0; i < 4000; ++i) text += static_cast<char>(1 + random() % 255);
  text += " ";
  for (std::int64_t limit : {257, 258, 300, 100000}) {
    const Vocabulary v({text, text}, limit);
    CHECK(v.size() <= limit);
    std::vector<std::int32_t> tokens;
    v.append(text, tokens);
    CHECK(decode(v, tokens) == text);
    std::int64_t bytes = 0, characters = 0;
    for (std::int32_t t : tokens) {
      CHECK(t < v.size());
      bytes += v.bytes(t);
      characters += v.characters(t);
    }
    CHECK(bytes == static_cast<std::int64_t>(text.size()));
    CHECK(characters < bytes);
  }
}

TEST_CASE("train_lm: a piece that is not in the vocabulary is spelt in bytes") {
  const Vocabulary v({" known words, known words"}, 1000);
  std::vector<std::int32_t> tokens;
  v.append(" known wörd", tokens);
  REQUIRE(tokens.size() == 1 + 6);
  CHECK(v.text(tokens[0]) == " known");
  CHECK(tokens[1] == ' ');
  CHECK(tokens[3] == 0xc3);
  CHECK(v.characters(tokens[3]) + v.characters(tokens[4]) == 1);
}

TEST_CASE("train_lm: every text is split at a line, nine tenths to learn from") {
  std::string text;
  for (int i = 0; i < 100; ++i) text += "line " + std::to_string(i) + "\n";
  const Corpus corpus = make_corpus({text, "one line without an end"}, 1000);
  const std::string head = decode(corpus.vocabulary, corpus.train), tail = decode(corpus.vocabulary, corpus.held_out);
  CHECK(tail.starts_with("line 9"));
  CHECK(tail.ends_with("line 99\n"));
  CHECK(head.starts_with("line 0\nline 1\n"));
  CHECK(head.size() + tail.size() == static_cast<std::size_t>(corpus.bytes));
  CHECK(corpus.texts == 2);
}
