// Programs of images that tests run in pods; standard library only.
module pontoon.dev/e2e/programs

go 1.26.0
