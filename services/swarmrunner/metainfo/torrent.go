// Package metainfo makes and reads torrent files: one file each, in the first
// version of the format (BEP 3, with the tiers of BEP 12).
package metainfo

import (
	"crypto/sha1"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/anacrolix/torrent/bencode"
)

// Limits of a torrent file that comes from outside.
const (
	MaxInput       = 16 << 20 // bytes of the torrent file
	MaxPieces      = 1 << 20
	MaxLength      = 1 << 40  // bytes of the file it describes
	MinPieceLength = 16 << 10 // what is asked of another peer at a time: nobody makes smaller pieces
	MaxPieceLength = 64 << 20
	maxName        = 255 // bytes: what file systems take
	maxAnnounce    = 64
	maxURL         = 2048
)

// Torrent describes one file as a list of hashed pieces (BEP 3).
type Torrent struct {
	Name        string
	Length      int64  // bytes of the file
	PieceLength int64  // bytes of every piece but the last
	Hashes      []byte // SHA-1 of every piece, 20 bytes each
	InfoHash    [20]byte
	Announce    []string // URLs of trackers

	// info is the dictionary that InfoHash is of, as it was read: it may hold
	// keys that are not known here, and without them the hash would be another.
	info []byte
}

// info is the description of the file in a torrent.
type info struct {
	Length      int64  `bencode:"length"`
	Name        string `bencode:"name"`
	PieceLength int64  `bencode:"piece length"`
	Pieces      []byte `bencode:"pieces"`
}

// Make describes content as a file called name in pieces of pieceLength bytes,
// at least 1. It keeps nothing of content.
func Make(name string, content []byte, pieceLength int64) *Torrent {
	t := &Torrent{Name: name, Length: int64(len(content)), PieceLength: pieceLength}
	t.Hashes = make([]byte, t.Pieces()*sha1.Size)
	t.hash(content)
	t.info = t.encodeInfo()
	t.InfoHash = sha1.Sum(t.info)
	return t
}

// hash hashes the pieces, on all processors when there is enough to do: a
// goroutine costs as much as hashing a few kilobytes.
func (t *Torrent) hash(content []byte) {
	const share = 1 << 20 // bytes worth a goroutine
	workers := min(runtime.GOMAXPROCS(0), len(content)/share, t.Pieces())
	if workers <= 1 {
		for i := range t.Pieces() {
			t.hashPiece(content, i)
		}
		return
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= t.Pieces() {
					return
				}
				t.hashPiece(content, i)
			}
		})
	}
	wg.Wait()
}

func (t *Torrent) hashPiece(content []byte, i int) {
	from := int64(i) * t.PieceLength
	sum := sha1.Sum(content[from : from+t.PieceSize(i)])
	copy(t.Hash(i), sum[:])
}

func (t *Torrent) encodeInfo() []byte {
	return bencode.MustMarshal(info{Length: t.Length, Name: t.Name, PieceLength: t.PieceLength, Pieces: t.Hashes})
}

// Pieces is how many pieces the file has.
func (t *Torrent) Pieces() int { return int((t.Length + t.PieceLength - 1) / t.PieceLength) }

// PieceSize is how many bytes piece i has: the last may have fewer than the others.
func (t *Torrent) PieceSize(i int) int64 {
	return min(t.PieceLength, t.Length-int64(i)*t.PieceLength)
}

// Hash is the SHA-1 of piece i: 20 bytes of Hashes, not a copy.
func (t *Torrent) Hash(i int) []byte {
	return t.Hashes[i*sha1.Size : (i+1)*sha1.Size : (i+1)*sha1.Size]
}

// Encode returns the torrent file with these trackers, or with those of
// t.Announce if none are given, each a tier of its own. The same torrent gives
// the same bytes, and one that was read gives the same info hash.
func (t *Torrent) Encode(announce ...string) []byte {
	if len(announce) == 0 {
		announce = t.Announce
	}
	file := struct {
		Announce     string        `bencode:"announce,omitempty"`
		AnnounceList [][]string    `bencode:"announce-list,omitempty"`
		Info         bencode.Bytes `bencode:"info"`
	}{Info: t.info}
	if len(announce) > 0 {
		file.Announce = announce[0]
	}
	if len(announce) > 1 {
		for _, url := range announce {
			file.AnnounceList = append(file.AnnounceList, []string{url})
		}
	}
	if file.Info == nil {
		file.Info = t.encodeInfo()
	}
	return bencode.MustMarshal(file)
}
