#!/usr/bin/env bash
# Builds the container image without Docker and prints the path of the archive,
# which `kind load image-archive` and `ctr images import` both take.
. "$(dirname "$0")/lib.sh"

# The linker takes its libc from the toolchain (glibc, static): FROM scratch has none.
TARGET=${IMAGE_TARGET:-$(rustc -vV | sed -n 's/^host: //p')}
# Paths of the build machine would make two builds differ. (The folder of the
# repository does not enter: Cargo passes its sources by relative paths.)
cargo_home=${CARGO_HOME:-$HOME/.cargo}
RUST_PATHS="--remap-path-prefix=$cargo_home=/cargo --remap-path-prefix=$CARGO_TARGET_DIR=/target"
C_PATHS="-ffile-prefix-map=$cargo_home=/cargo -ffile-prefix-map=$CARGO_TARGET_DIR=/target"
ARCHIVE=${IMAGE_ARCHIVE:-$CACHE/image/posthorn.tar}
BYTES_MAX=$((25 * 1000 * 1000))
case $TARGET in
  x86_64-*) ARCHITECTURE=amd64 ;;
  aarch64-*) ARCHITECTURE=arm64 ;;
  *) die "no image for $TARGET: x86_64 and aarch64 are known" ;;
esac

# A static program that may lie anywhere has some 50,000 relocations: packed they
# are 15 KB in place of 1.2 MB, which every start reads and keeps in memory.
RELOCATIONS="-C link-arg=-Wl,-z,pack-relative-relocs"

compile() {
  # --target keeps the static flag away from build scripts and proc macros.
  (cd "$REPOSITORY" && RUSTFLAGS="-C target-feature=+crt-static $RELOCATIONS $RUST_PATHS" TARGET_CFLAGS="$C_PATHS" \
    cargo build --release --locked --target "$TARGET" --bin posthorn >&2)
}

pack() {
  mkdir -p "$(dirname "$ARCHIVE")" "$CACHE/bin" &&
    (cd "$REPOSITORY/image" && CGO_ENABLED=0 go build -trimpath -o "$CACHE/bin/posthorn-image" . >&2) &&
    "$CACHE/bin/posthorn-image" --binary "$CARGO_TARGET_DIR/$TARGET/release/posthorn" --arch "$ARCHITECTURE" \
      --name "$IMAGE" --out "$ARCHIVE" >&2
}

toolchains
step "Compiling posthorn for the image (this takes minutes)" compile
step "Packing the image $IMAGE" pack
bytes=$(stat -c %s "$ARCHIVE")
[ "$bytes" -le "$BYTES_MAX" ] || die "the image has $bytes bytes, at most $BYTES_MAX are allowed"
printf '%s\n' "$ARCHIVE"
