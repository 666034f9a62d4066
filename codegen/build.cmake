# Writes codegen/build.h: cmake -DOUT=FILE -DVERSION=0.1.0 "-DFILES=a;b;c" -P build.cmake
set(all "")
foreach(file IN LISTS FILES)
  file(SHA256 ${file} hash)
  string(APPEND all ${hash})
endforeach()
string(SHA256 hash "${all}")
string(SUBSTRING ${hash} 0 16 hash)
file(CONFIGURE OUTPUT ${OUT} CONTENT "#pragma once\n#define KERF_BUILD \"${VERSION}+${hash}\"\n")
