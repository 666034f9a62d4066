// Everything a user may include.
#pragma once

#include "kerf/cache.h"
#include "kerf/dsl.h"
#include "kerf/error.h"
#include "kerf/kernel.h"
#include "kerf/loss.h"
#include "kerf/tensor.h"
#include "kerf/tuner.h"
#include "kerf/version.h"
#include "kerf/wisdom.h"
