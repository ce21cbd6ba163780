package motion

import "math"

// Detector looks at one picture after another.
type Detector interface {
	// Look takes a picture of Width × Height gray bytes and returns the share of
	// it that the largest connected change covers, 0 while learning. The slice is
	// not kept.
	Look(gray []byte) float64
}

// New returns a detector by pictures; nil for the kinds that have none.
func New(c Config) Detector {
	switch c.Kind {
	case KindFrame:
		return NewFrame(Width, Height, c.Threshold)
	case KindMixture:
		return NewMixture(Width, Height, c.Threshold)
	}
	return nil
}

const (
	// learning is how many pictures teach before the first that can be motion.
	learning = 5
	// wholesale is the share of changed pixels above which it is not something
	// that moves, but the light or the scene.
	wholesale = 0.7
)

// Frame tells motion by the difference from a running average. Not safe for
// concurrent use.
type Frame struct {
	threshold  float32
	background []float32
	seen       int
	mask       mask
}

// NewFrame looks at pictures of the given size; a pixel has changed when it
// differs by more than threshold.
func NewFrame(width, height int, threshold float64) *Frame {
	return &Frame{threshold: float32(threshold), background: make([]float32, width*height), mask: newMask(width, height)}
}

// Look implements [Detector].
func (f *Frame) Look(gray []byte) float64 {
	if len(gray) != len(f.background) {
		return 0
	}
	if f.seen == 0 {
		for i, v := range gray {
			f.background[i] = float32(v)
		}
		f.seen++
		return 0
	}
	shift := f.shift(gray)
	changed := 0
	for i, v := range gray {
		d := float32(v) - f.background[i] - shift
		f.mask.bits[i] = d > f.threshold || d < -f.threshold
		if f.mask.bits[i] {
			changed++
		}
	}
	if float64(changed) > wholesale*float64(len(gray)) {
		f.seen = 0
		return f.Look(gray)
	}
	// The average of the first pictures weighs them alike; later ones fade, more
	// slowly where something moves, so that what stops is seen a while yet.
	rate := max(1/float32(f.seen+1), 0.05)
	for i, v := range gray {
		r := rate
		if f.mask.bits[i] && f.seen > learning {
			r = rate / 5
		}
		f.background[i] += r * (float32(v) - f.background[i])
	}
	if f.seen++; f.seen <= learning {
		return 0
	}
	return f.mask.largest()
}

// shift is by how much the whole picture is lighter than the background: an
// exposure that adapts is not motion. It is the median, so that what does move
// has no part in it.
func (f *Frame) shift(gray []byte) float32 {
	var counts [511]int
	for i, v := range gray {
		counts[int(math.Round(float64(v)-float64(f.background[i])))+255]++
	}
	sum := 0
	for d, n := range counts {
		if sum += n; 2*sum >= len(gray) {
			return float32(d - 255)
		}
	}
	return 0
}

const modes = 3

// Mixture tells motion by a mixture of normal distributions for each pixel
// (Stauffer and Grimson's, with the update of Zivkovic's that OpenCV calls
// MOG2, of a fixed number of modes and without shadows). Not safe for
// concurrent use.
type Mixture struct {
	pixels   [][modes]mode // by weight, the heaviest first
	variance float32       // of a new mode
	seen     int
	mask     mask
}

type mode struct{ weight, mean, variance float32 }

// NewMixture looks at pictures of the given size; a pixel has changed when it
// differs from every value that is usual there, by more than threshold from
// those that are steady.
func NewMixture(width, height int, threshold float64) *Mixture {
	// A pixel belongs to a mode within four standard deviations.
	deviation := float32(threshold) / spread
	return &Mixture{pixels: make([][modes]mode, width*height), variance: deviation * deviation, mask: newMask(width, height)}
}

const (
	spread = 4
	// usual is the weight of modes, from the heaviest on, that are background.
	usual = 0.9
)

// Look implements [Detector].
func (m *Mixture) Look(gray []byte) float64 {
	if len(gray) != len(m.pixels) {
		return 0
	}
	rate := max(1/float32(m.seen+1), 0.02)
	changed := 0
	for i, v := range gray {
		m.mask.bits[i] = m.pixel(&m.pixels[i], float32(v), rate)
		if m.mask.bits[i] {
			changed++
		}
	}
	if m.seen > 0 && float64(changed) > wholesale*float64(len(gray)) {
		clear(m.pixels)
		m.seen = 0
		return m.Look(gray)
	}
	if m.seen++; m.seen <= learning {
		return 0
	}
	return m.mask.largest()
}

// pixel learns a value and reports whether it is unusual.
func (m *Mixture) pixel(p *[modes]mode, v, rate float32) (unusual bool) {
	var before float32
	hit := -1
	unusual = true
	for k := range p {
		g := &p[k]
		if g.weight == 0 {
			break
		}
		d := v - g.mean
		if hit < 0 && d*d < spread*spread*max(g.variance, m.variance) {
			hit = k
			unusual = before > usual
		}
		before += g.weight
	}
	for k := range p {
		p[k].weight *= 1 - rate
	}
	if hit < 0 {
		hit = modes - 1
		for k := range p {
			if p[k].weight == 0 {
				hit = k
				break
			}
		}
		p[hit] = mode{weight: rate, mean: v, variance: m.variance}
	} else {
		g := &p[hit]
		g.weight += rate
		step := rate / g.weight
		d := v - g.mean
		g.mean += step * d
		g.variance += step * (d*d - g.variance)
		// What never varies would take the next noise for motion, what varies
		// widely would never see any.
		g.variance = min(max(g.variance, m.variance/4), m.variance*4)
	}
	for k := hit; k > 0 && p[k].weight > p[k-1].weight; k-- {
		p[k], p[k-1] = p[k-1], p[k]
	}
	var sum float32
	for k := range p {
		sum += p[k].weight
	}
	for k := range p {
		p[k].weight /= sum
	}
	return unusual
}

// mask is which pixels have changed.
type mask struct {
	width, height int
	bits, clean   []bool
	stack         []int32
}

func newMask(width, height int) mask {
	return mask{width: width, height: height, bits: make([]bool, width*height), clean: make([]bool, width*height)}
}

// largest is the share of the picture that the largest connected change covers,
// after pixels that differ from most of their neighbours have been evened out.
func (m *mask) largest() float64 {
	clear(m.clean)
	for y := 1; y < m.height-1; y++ {
		for x := 1; x < m.width-1; x++ {
			n := 0
			for _, row := range [3]int{(y - 1) * m.width, y * m.width, (y + 1) * m.width} {
				for _, b := range m.bits[row+x-1 : row+x+2] {
					if b {
						n++
					}
				}
			}
			m.clean[y*m.width+x] = n >= 5
		}
	}
	largest := 0
	for i := range m.clean {
		if m.clean[i] {
			largest = max(largest, m.fill(int32(i)))
		}
	}
	return float64(largest) / float64(len(m.clean))
}

// fill counts the changed pixels connected with one and clears them. The
// outermost pixels are never set, so every neighbour exists.
func (m *mask) fill(at int32) int {
	w := int32(m.width)
	m.clean[at] = false
	m.stack = append(m.stack[:0], at)
	n := 0
	for len(m.stack) > 0 {
		i := m.stack[len(m.stack)-1]
		m.stack = m.stack[:len(m.stack)-1]
		n++
		for _, next := range [8]int32{i - w - 1, i - w, i - w + 1, i - 1, i + 1, i + w - 1, i + w, i + w + 1} {
			if m.clean[next] {
				m.clean[next] = false
				m.stack = append(m.stack, next)
			}
		}
	}
	return n
}
