# The commands of everyday work; `just` lists them (https://just.systems).

_list:
    @{{just_executable()}} --list --unsorted

# Run the tests of the default features, without those of the command line.
test *arguments:
    cargo test {{arguments}}

# Run the tests of one module or name with all features: `just one onnx::a_gemm`.
one name *arguments:
    cargo test --all-features --test relprop {{name}} {{arguments}}

# Run the tests of the command line.
cli:
    cargo test -p relprop-cli

# Compare all rules with the reference numbers, and show how far they are apart.
golden:
    cargo test --test relprop golden:: -- --nocapture

# Check format, lints and documentation.
lint:
    cargo fmt --check
    cargo clippy --workspace --all-targets --all-features -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --all-features

# Open the documentation.
docs:
    cargo doc --no-deps --all-features --open

# Explain the bundled digits.
mnist *arguments:
    cargo run --release --example mnist -- {{arguments}}

# Measure the engine: `just bench growth`.
bench name:
    cargo bench --all-features --bench {{name}}

# Run everything that has to hold at every commit.
gate:
    bash .ci/run
